"""Prompt sets: read, encoded into tokens, and put into right-padded batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tv.errors import PromptError

Positions = Literal["all", "last", "target"]


class PromptFile(Protocol):
    """A JSONL file of prompts and the domain of those rows that name none."""

    @property
    def file(self) -> Path: ...
    @property
    def domain(self) -> str | None: ...


@dataclass(frozen=True)
class Prompt:
    """A text, and the continuations that tell the answer learnt (target) from another (foil)."""

    id: str
    set: str
    domain: str
    text: str
    target: str | None = None
    foil: str | None = None


@dataclass(frozen=True)
class Encoded:
    """A prompt in tokens. Position p predicts token p + 1."""

    prompt: Prompt
    ids: tuple[int, ...]  # text + target, with the tokenizer's own special tokens before them
    n_text: int  # index of the first target token; len(ids) without a target
    answer_pos: int  # its next-token logits separate target and foil; n_text − 1 without a foil
    target_id: int  # the first token in which target and foil differ, or the target's first; −1 without a target
    foil_id: int  # −1 without a foil

    @property
    def scored(self) -> range:
        """The positions that predict the target's tokens; empty without a target."""
        return range(self.n_text - 1, len(self.ids) - 1)


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right, so that no architecture needs position ids."""

    encoded: tuple[Encoded, ...]
    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]  # 1 for a token, 0 for padding


def read_prompts(files: Sequence[PromptFile]) -> list[Prompt]:
    """All rows of JSONL files, in order; keys: id, text, target?, foil?, domain? (others are ignored).

    A row's set is its file's stem. Its domain is the row's own, else the file entry's, else the set. Raises PromptError
    naming the file and line of the first row that cannot be used.
    """
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for entry in files:
        path = Path(entry.file)
        before = len(prompts)
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                place = f"{path}: line {number}"
                prompt = _prompt(line, place, path.stem, entry.domain)
                if prompt.id in seen:
                    raise PromptError(
                        f"{place}: id {prompt.id!r} is already taken by {seen[prompt.id]}; ids are unique"
                    )
                seen[prompt.id] = place
                prompts.append(prompt)
        if len(prompts) == before:
            raise PromptError(f"{path}: no prompts; write one JSON object with id and text a line")
    return prompts


def encode(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, context: int) -> list[Encoded]:
    """Tokens of text + target, encoded together; a token across the boundary counts as the target's.

    Special tokens come as the tokenizer puts them in front; those it puts at the end are left out, because what
    follows a prompt is what the model says. `context` is the longest input the models take, in tokens. Raises
    PromptError naming the prompt.
    """
    if not tokenizer.is_fast:
        raise PromptError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, so text and target cannot be told apart"
        )
    with_target = _tokens([p.text + (p.target or "") for p in prompts], tokenizer)
    with_foil = iter(_tokens([p.text + p.foil for p in prompts if p.foil is not None], tokenizer))
    return [
        _encoded(prompt, *tokens, next(with_foil)[0] if prompt.foil is not None else None, context)
        for prompt, tokens in zip(prompts, with_target, strict=True)
    ]


def batches(encoded: Sequence[Encoded], batch_size: int, pad_id: int) -> list[Batch]:
    """Prompts of like length together, shortest first; equal lengths keep their order."""
    ordered = sorted(encoded, key=lambda item: len(item.ids))
    return [_batch(tuple(ordered[i : i + batch_size]), pad_id) for i in range(0, len(ordered), batch_size)]


def positions(encoded: Encoded, which: Positions) -> range:
    """The positions to measure: all, the text's last, or those that predict the target (without one, the last)."""
    last = range(encoded.n_text - 1, encoded.n_text)
    if which == "all":
        return range(len(encoded.ids))
    return encoded.scored or last if which == "target" else last


def _lines(path: Path) -> list[str]:
    """Lines by newline alone: JSON strings may hold other line separators as they are."""
    try:
        return path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise PromptError(f"{path}: line {number}: not UTF-8 text; save the file as UTF-8") from None
    except FileNotFoundError:
        raise PromptError(f"{path}: no such prompt file") from None
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from None


def _prompt(line: str, place: str, stem: str, domain: str | None) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place}: not valid JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(row, dict):
        raise PromptError(f"{place}: a row is a JSON object with id and text, not {type(row).__name__}")
    for key in ("id", "text"):
        if row.get(key) is None:
            raise PromptError(f"{place}: {key} is missing")
    values = {key: _string(row, key, place) for key in ("id", "text", "target", "foil", "domain")}
    if values["foil"] is not None and values["target"] is None:
        raise PromptError(f"{place}: a foil without a target; add the target that it competes with")
    if values["foil"] is not None and values["foil"] == values["target"]:
        raise PromptError(f"{place}: foil and target are the same; the foil is another answer")
    return Prompt(
        id=values["id"] or "",
        set=stem,
        domain=values["domain"] or domain or stem,
        text=values["text"] or "",
        target=values["target"],
        foil=values["foil"],
    )


def _string(row: Mapping[str, Any], key: str, place: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise PromptError(f"{place}: {key} is {type(value).__name__}, not a string; put it in quotes")
    if not value or (key not in ("target", "foil") and not value.strip()):
        raise PromptError(f"{place}: {key} is blank")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise PromptError(f"{place}: {key} holds half of a surrogate pair, which is no character")
    return value


Tokens = tuple[list[int], list[int]]  # ids; where each ends in the string


def _tokens(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    if not texts:
        return []
    out = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    encoded = []
    for ids, offsets, special in zip(out["input_ids"], out["offset_mapping"], out["special_tokens_mask"], strict=True):
        n = len(ids)
        while n and special[n - 1] and offsets[n - 1][0] == offsets[n - 1][1]:
            n -= 1
        encoded.append((list(ids[:n]), [end for _, end in offsets[:n]]))
    return encoded


def _encoded(prompt: Prompt, ids: list[int], ends: list[int], foil: list[int] | None, context: int) -> Encoded:
    place = f"prompt {prompt.id!r} of {prompt.set}"
    if len(ids) > context:
        raise PromptError(f"{place}: {len(ids)} tokens, and the models take {context}; shorten or remove it")
    n_text = len(ids)
    if prompt.target is not None:
        n_text = next((i for i, end in enumerate(ends) if end > len(prompt.text)), len(ids))
        if n_text == len(ids):
            raise PromptError(f"{place}: the target {prompt.target!r} adds no token to the text")
    if n_text < 1:
        raise PromptError(f"{place}: no token of text stands before the target; make the text longer")
    answer_pos = n_text - 1
    target_id, foil_id = (-1 if prompt.target is None else ids[n_text]), -1
    if foil is not None:
        split = next((i for i, (a, b) in enumerate(zip(ids, foil, strict=False)) if a != b), None)
        if split == 0:
            raise PromptError(f"{place}: the foil changes the first token of the text; make the text longer")
        if split is None:
            raise PromptError(
                f"{place}: in tokens, one of target {prompt.target!r} and foil {prompt.foil!r} begins with the other, "
                "so no token tells them apart; choose another foil"
            )
        answer_pos, target_id, foil_id = split - 1, ids[split], foil[split]
    return Encoded(prompt, tuple(ids), n_text, answer_pos, target_id, foil_id)


def _batch(encoded: tuple[Encoded, ...], pad_id: int) -> Batch:
    lengths = torch.tensor([len(item.ids) for item in encoded])
    longest = int(lengths.max())
    ids = torch.tensor([[*item.ids, *[pad_id] * (longest - len(item.ids))] for item in encoded], dtype=torch.long)
    return Batch(encoded, ids, (torch.arange(longest) < lengths[:, None]).long())
