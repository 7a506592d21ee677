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
    """Texts that the base samples behind its first token alone. Raises RunError where nothing begins a text."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise RunError("discover: the tokenizer has no token that begins a text, so the base writes none; give --texts")
    beginnings = [Beginning(f"text {i}", (int(first),)) for i in range(TEXTS)]
    ends = sorted(end_ids(base, tokenizer))
    written = continued(Writer([(base, 1.0)]), beginnings, TOKENS, seed=seed, ends=ends)
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]
    return [text for text in texts if text]


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
