"""Texts for a discovery where none are given: what the base itself writes, from nothing."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.discovery.sampling import Beginning, Writer, continued
from probes.errors import RunError
from tv.evaluation.greedy import end_ids
from tv.runtime.atomic import replacing

#: Texts, and tokens in each.
TEXTS, TOKENS = 128, 32


def base_writes(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
    """Texts that the base samples behind its first token alone. Raises RunError where nothing begins a text.

    They begin with that token as they are read again, by the tokenizer or else in the text.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise RunError("discover: the tokenizer has no token that begins a text, so the base writes none; give --texts")
    beginnings = [Beginning(f"text {i}", (int(first),)) for i in range(TEXTS)]
    ends = sorted(end_ids(base, tokenizer))
    written = continued(Writer(base), beginnings, TOKENS, seed=seed, ends=ends)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
    begins = "" if tokenizer("a").input_ids[0] == first else tokenizer.decode([int(first)])
    return [begins + text for text in texts if text]


def is_written(path: Path, name: str) -> bool:
    """Whether the file is one that `write_texts` has written under this name."""
    try:
        with path.open(encoding="utf-8") as file:
            return bool(json.loads(file.readline())["id"] == f"{name}-0000")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def paragraphs(path: Path) -> list[str]:
    """The texts of a plain text file: what stands between blank lines."""
    try:
        whole = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read as text: {error}") from None
    return [part.strip() for part in whole.split("\n\n") if part.strip()]


def write_texts(texts: list[str], path: Path, name: str) -> None:
    """A file of prompts without targets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"id": f"{name}-{i:04d}", "text": text}, ensure_ascii=False) for i, text in enumerate(texts)]
    with replacing(path, RunError) as temporary:
        temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
