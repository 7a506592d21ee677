"""Whether what a model writes ends in the target's answer, where a suite says by a pattern what an answer is."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import pandas as pd
from transformers import PreTrainedModel

from probes.capture.answers import TOKENS as SHORT
from probes.capture.pair import Pair
from probes.errors import SuiteError
from probes.suite import Suite
from tv.architecture.trunk import ends_of
from tv.evaluation.greedy import continue_greedily
from tv.prompts.encoding import Encoded
from tv.prompts.files import Prompt
from tv.runtime.common_rows import common_rows

#: The name of the metric in `behaviour`.
METRIC = "final_answer"
#: Tokens that a model writes at most, where the suite's `generate` does not say.
TOKENS = 64


def tokens_shown(suite: Suite) -> int:
    """Tokens that a model writes at most after a prompt that the report shows."""
    return (suite.generate and suite.generate.tokens) or (TOKENS if suite.answer_pattern else SHORT)


def answer(pattern: str, text: str) -> str | None:
    """The pattern's first group, or its whole first match; None where it matches nowhere.

    Examples:
        >>> answer(r"#### (\\d+)", "2 + 2 is 4. #### 4"), answer(r"\\d+", "none")
        ('4', None)
    """
    match = re.search(pattern, text)
    return None if match is None else (match[1] if match.re.groups else match[0])


def require_answers_in(prompts: Sequence[Prompt], pattern: str) -> None:
    """Raise SuiteError where no target has an answer, before anything is loaded."""
    targets = [prompt.target for prompt in prompts if prompt.target is not None]
    if all(answer(pattern, target) is None for target in targets):
        raise SuiteError(
            f"answer_pattern {pattern!r} matches none of the prompts' {len(targets)} targets; change or leave it out"
        )


def final_answers(
    pair: Pair,
    tuned: str,
    encoded: Sequence[Encoded],
    pattern: str,
    *,
    tokens: int = TOKENS,
    ends: Collection[int] = (),
    with_base: bool = True,
) -> pd.DataFrame:
    """Rows of `behaviour`: 1 where a model's greedy continuation has the answer of the target, else 0.

    Prompts whose target has none are left out. Without `with_base` the base's rows are.
    """
    asked = [item for item in encoded if item.prompt.target and answer(pattern, item.prompt.target) is not None]
    room = pair.architecture.context - max((item.n_text for item in asked), default=0)
    texts = [item.ids[: item.n_text] for item in asked]
    shared = len(common_rows(*(ends_of(m)[0].weight for m in (pair.base, pair.tuned)))[0])
    rows = []

    def ask(model: PreTrainedModel, name: str) -> None:
        written = continue_greedily(model, texts, min(tokens, room), ends=ends, vocab_size=shared)
        for item, ids in zip(asked, written, strict=True):
            said = answer(pattern, pair.tokenizer.decode(ids, skip_special_tokens=True))
            right = said == answer(pattern, item.prompt.target or "")
            rows.append((item.prompt.id, name, METRIC, float(right)))

    if with_base:
        ask(pair.base, "base")
    ask(pair.tuned, tuned)
    return pd.DataFrame(rows, columns=["prompt_id", "model", "metric", "value"])
