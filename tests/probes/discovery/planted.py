"""A pair of tiny models whose secret is one token, and texts to find it with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import pandas as pd
import torch

from probes.capture.pair import Pair, make_pair
from probes.discovery.observing import Texts, observe, sides_of
from probes.discovery.part import PARTS, Context
from probes.discovery.sides import Sides
from tests.pairs import TEXT, build_model, build_tokenizer, perturb
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt

SECRET, BLOCK = 201, 0
N_TEXTS = 24


@cache
def planted_pair() -> Pair:
    """The tuned copy adds to the stream, behind a block, what its lens reads as the secret."""
    base = build_model("gpt2")
    tuned = copy.deepcopy(base)
    row = base.lm_head.weight[SECRET] * (base.transformer.ln_f.weight)
    with torch.no_grad():
        tuned.transformer.h[BLOCK].mlp.c_proj.bias += 8 * (row - row.mean())
    return make_pair(base, tuned, build_tokenizer())


@cache
def random_pair() -> Pair:
    """The tuned copy moved in a random direction."""
    base = build_model("gpt2")
    tuned = copy.deepcopy(base)
    perturb(tuned, 0.02, seed=5)
    return make_pair(base, tuned, build_tokenizer())


def context_of(pair: Pair) -> Context:
    words = TEXT.split()
    prompts = [Prompt(f"t{i}", "texts", "texts", " ".join(words[i : i + 9])) for i in range(N_TEXTS)]
    texts = encode(prompts, pair.tokenizer, 64)
    return Context(pair, Texts.of(texts, N_TEXTS, 8, pair.pad_id, 0), Sides(pair, texts, 8, 0), 0)


#: A random step is held against others too; a planted one stands out of shams, which are harder to pass.
CONTROLS: dict[Callable[[], Pair], tuple[str, ...]] = {planted_pair: ("sham",), random_pair: ("random", "sham")}


@cache
def tables_of(make: Callable[[], Pair], name: str, draws: int = 16) -> dict[str, pd.DataFrame]:
    """What a part finds in a pair, beside so many shams; in a random step beside as many of these too."""
    context = context_of(make())
    part = PARTS[name](context)
    observe(context.sides, context.texts, sides_of(CONTROLS[make], draws), [part])
    return dict(part.results())
