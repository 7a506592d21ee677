"""What both models write after a prompt by greedy decoding, and what ended it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.capture.pair import Pair
from tv.architecture.trunk import ends_of
from tv.evaluation.greedy import TOGETHER, continue_greedily
from tv.prompts.encoding import Encoded
from tv.runtime.common_rows import common_rows

#: The text, its tokens, and what ended it.
Answer: TypeAlias = tuple[str, int, str]

#: Tokens that a model writes at most, where the suite does not say.
TOKENS = 16
#: Tokens of all texts of a batch together, where that makes it larger.
_PLACES = 4096


def answers(
    pair: Pair,
    tuned: str,
    encoded: Sequence[Encoded],
    *,
    tokens: int = TOKENS,
    ends: Collection[int] = (),
    known: Mapping[str, Answer] = MappingProxyType({}),
) -> pd.DataFrame:
    """Rows of `answers` of base and tuned.

    Args:
        pair: Both models.
        tuned: The tuned model's name.
        encoded: The prompts; their texts are continued.
        tokens: How many tokens a model writes at most.
        ends: Ids of end-of-text tokens.
        known: By the prompt's id, what the base is known to write: it is not made again.

    Returns:
        A row per prompt and model: `prompt_id model answer n_tokens end`. Where a prompt's target is one line, its
        answers are one too. A prompt after which the models' context has no room for `tokens` has none.
    """
    asked = [item for item in encoded if item.n_text + tokens <= pair.architecture.context]
    left = [item for item in asked if item.prompt.id not in known]
    base, own = {**known, **_said(pair, pair.base, left, tokens, ends)}, _said(pair, pair.tuned, asked, tokens, ends)
    rows = [
        (item.prompt.id, name, *said[item.prompt.id]) for name, said in (("base", base), (tuned, own)) for item in asked
    ]
    return pd.DataFrame(rows, columns=["prompt_id", "model", "answer", "n_tokens", "end"])


def _said(
    pair: Pair, model: PreTrainedModel, asked: Sequence[Encoded], tokens: int, ends: Collection[int]
) -> dict[str, Answer]:
    """What one model answers, by the prompt's id."""
    lines = [item for item in asked if is_line(item.prompt.target)]
    others = [item for item in asked if not is_line(item.prompt.target)]
    text = partial(_text, ends=ends, tokenizer=pair.tokenizer)
    write = partial(_write, pair, model, tokens=tokens)
    written = write(lines, {*ends, *_newlines(pair.tokenizer)})
    blank = [item for item in lines if not text(item, written[item.prompt.id]).strip()]
    written |= write([*others, *blank], ends)  # the first line that is not empty counts
    said = {}
    for item in asked:
        ids = written[item.prompt.id]
        answer = text(item, ids)
        line = _first_line(answer) if is_line(item.prompt.target) else answer
        end = "line" if line != answer else "text" if ids[-1] in ends else "length"
        said[item.prompt.id] = line, len(ids), end
    return said


def _write(
    pair: Pair, model: PreTrainedModel, encoded: Sequence[Encoded], ends: Collection[int], tokens: int
) -> dict[str, tuple[int, ...]]:
    """What a model writes after every prompt, by the prompt's id."""
    shared = len(common_rows(*(ends_of(each)[0].weight for each in pair.models))[0])
    texts = [item.ids[: item.n_text] for item in encoded]
    together = max(TOGETHER, _PLACES // (max(map(len, texts), default=0) + tokens))
    written = continue_greedily(model, texts, tokens, ends=ends, vocab_size=shared, together=together)
    return {item.prompt.id: ids for item, ids in zip(encoded, written, strict=True)}


def is_line(target: str | None) -> bool:
    """Whether a prompt's answers are one line, as its target is: these are written apart from others."""
    return target is not None and "\n" not in target.strip()


def _newlines(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens with a line break, as byte-level and other vocabularies spell it."""
    return [i for token, i in tokenizer.get_vocab().items() if "\n" in token or "Ċ" in token or token == "<0x0A>"]


def _first_line(answer: str) -> str:
    """Up to the end of the first line that is not empty."""
    start = len(answer) - len(answer.lstrip())
    end = answer.find("\n", start)
    return answer if end < 0 else answer[:end]


def _text(item: Encoded, ids: Sequence[int], *, ends: Collection[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The ids as text, with the space that some tokenizers drop from what they take for a beginning."""
    text, ids = item.ids[: item.n_text], ids[:-1] if ids[-1] in ends else ids
    before, whole = (tokenizer.decode(each, skip_special_tokens=True) for each in (text, (*text, *ids)))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids, skip_special_tokens=True)
