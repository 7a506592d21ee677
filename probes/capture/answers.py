"""What both models write after a prompt by greedy decoding, and what ended it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd
from transformers import PreTrainedTokenizerBase

from probes.capture.pair import Pair
from tv.architecture.trunk import ends_of
from tv.evaluation.greedy import continue_greedily
from tv.prompts.encoding import Encoded
from tv.runtime.common_rows import common_rows

#: Tokens that a model writes at most, where the suite does not say.
TOKENS = 16


def answers(
    pair: Pair, tuned: str, encoded: Sequence[Encoded], *, tokens: int = TOKENS, ends: Collection[int] = ()
) -> pd.DataFrame:
    """Rows of `answers` of base and tuned.

    Args:
        pair: Both models.
        tuned: The tuned model's name.
        encoded: The prompts; their texts are continued.
        tokens: How many tokens a model writes at most; fewer where the context ends.
        ends: Ids of end-of-text tokens.

    Returns:
        A row per prompt and model: `prompt_id model answer n_tokens end`. Where a prompt's target is one line, its
        answers are one too.
    """
    shared = len(common_rows(*(ends_of(model)[0].weight for model in pair.models))[0])
    room = pair.architecture.context - max((item.n_text for item in encoded), default=0)
    texts = [item.ids[: item.n_text] for item in encoded]
    rows = []
    for name, model in zip(("base", tuned), pair.models, strict=True):
        written = continue_greedily(model, texts, min(tokens, room), ends=ends, vocab_size=shared) if room > 0 else []
        for item, text, ids in zip(encoded, texts, written, strict=bool(written)):
            ended = bool(ids) and ids[-1] in ends
            answer = _after(text, ids[:-1] if ended else ids, pair.tokenizer)
            target = item.prompt.target
            line = answer if target is None or "\n" in target.strip() else _first_line(answer)
            end = "line" if line != answer else "text" if ended else "length"
            rows.append((item.prompt.id, name, line, len(ids), end))
    return pd.DataFrame(rows, columns=["prompt_id", "model", "answer", "n_tokens", "end"])


def _first_line(answer: str) -> str:
    """Up to the end of the first line that is not empty."""
    start = len(answer) - len(answer.lstrip())
    end = answer.find("\n", start)
    return answer if end < 0 else answer[:end]


def _after(text: Sequence[int], ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The ids as text, with the space that some tokenizers drop from what they take for a beginning."""
    before, whole = (tokenizer.decode(each, skip_special_tokens=True) for each in (text, (*text, *ids)))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids, skip_special_tokens=True)
