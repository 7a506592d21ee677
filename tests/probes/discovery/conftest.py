"""Pairs and texts to discover something in."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from probes.capture.pair import Pair, make_pair
from probes.discovery.observing import Texts
from probes.discovery.part import Context
from probes.discovery.sides import Sides
from tv.checkpoints.live import load_model, load_tokenizer
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt

MODELS = Path("data/models")
GENERAL = Path("data/prompts/general.jsonl")


@cache
def demo_pair(tuned: str = "medical") -> Pair:
    """The embedded base and one of its fine-tunes."""
    base, other = (load_model(str(MODELS / name), dtype="float32", device="cpu") for name in ("base", tuned))
    return make_pair(base, other, load_tokenizer(str(MODELS / "base")))


@cache
def general_texts(n: int = 24) -> tuple[Encoded, ...]:
    """General prompts without their targets."""
    rows = [json.loads(line) for line in GENERAL.read_text(encoding="utf-8").splitlines()[:n]]
    prompts = [Prompt(row["id"], "general", "general", row["text"], cluster=row["cluster"]) for row in rows]
    return tuple(encode(prompts, demo_pair().tokenizer, 128))


def context_of(pair: Pair, n: int = 24) -> Context:
    """What a part is given."""
    texts = general_texts(n)
    return Context(pair, Texts.of(texts, n, 16, pair.pad_id, 0), Sides(pair, texts, 16, 0), 0)
