"""Whether two checkpoints make the same tokens of the same text, and where their tokenizers differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.location import kind_of
from tv.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenizerWord: TypeAlias = Literal["same", "grown", "renamed", "other rules", "not compared"]

#: The files that a tokenizer is loaded from.
_FILES = (
    *("tokenizer*", "vocab.*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "*.model", "tekken.json"),
    *("chat_template*", "additional_chat_templates/*.jinja"),
)
#: Names of tokens that stand in a vocabulary to be given a meaning later.
_RESERVED = re.compile(r"[<\[].*(unused|reserved|extra|placeholder|special|dummy|pad).*[>\]]", re.IGNORECASE)


def compare_tokenizers(base: Checkpoint, tuned: Checkpoint) -> tuple[TokenizerWord, list[str]]:
    """One word on the two tokenizers, and what a reader should know, a line each.

    "other rules": the same text can become other tokens, other special tokens stand around it, or chat turns are
    written otherwise. "renamed": reserved ids have got other tokens. "grown": one has more tokens. Identical files are
    not loaded. Raises CheckpointError where an id means another ordinary token: rows of the embeddings then do not
    belong together.
    """
    before, after = _place(base), _place(tuned)
    if before is None or after is None:
        missing = [side.source for side, place in ((base, before), (tuned, after)) if place is None]
        return "not compared", [f"tokenizers not compared: none lies beside {', '.join(missing)}"]
    if before == after or (_content(before) and _content(before) == _content(after)):
        return "same", []
    from tv.checkpoints.live import load_tokenizer  # here: most pairs have identical files, and it imports transformers

    try:
        left, right = load_tokenizer(before), load_tokenizer(after)
    except Exception as error:  # files of strangers can make a loader raise anything
        return "not compared", [f"tokenizers not compared: {first_line(error)}"]
    vocabularies = left.get_vocab(), right.get_vocab()
    renamed = other_meanings(*vocabularies)
    _require_ordinary_ids(base, tuned, left, vocabularies, renamed)
    if slow := next((side for side in (left, right) if not side.is_fast), None):
        return "not compared", [f"tokenizers not compared: {type(slow).__name__} shows its vocabulary alone"]
    try:
        rules = [_rules(side, vocabularies[0].keys() & vocabularies[1].keys()) for side in (left, right)]
    except Exception as error:  # odd settings of a tokenizer are told when it is first used
        return "not compared", [f"tokenizers not compared: {first_line(error)}"]
    differing = [_told(name, *(side[name] for side in rules)) for name in rules[0] if rules[0][name] != rules[1][name]]
    n = len((vocabularies[0].keys() ^ vocabularies[1].keys()) - {token for pair in renamed.values() for token in pair})
    notes = [
        *([f"the tokenizers differ in {', '.join(differing)}"] if differing else []),
        *([_renaming(renamed)] if renamed else []),
        *([f"{n} tokens are in one tokenizer only"] if n > 0 else []),
    ]
    return "other rules" if differing else "renamed" if renamed else "grown" if n > 0 else "same", notes


def tokenizer_of(checkpoint: Checkpoint) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a checkpoint, of an adapter or a tuning vector without one its base's; None without any.

    None also where it cannot be loaded: `compare_tokenizers` says why.
    """
    from tv.checkpoints.live import load_tokenizer

    place = _place(checkpoint)
    try:
        return None if place is None else load_tokenizer(place)
    except Exception:  # files of strangers can make a loader raise anything
        return None


def other_meanings(base: Mapping[str, int], tuned: Mapping[str, int]) -> dict[int, tuple[str, str]]:
    """Ids that both vocabularies have with other tokens: (the base's, the tuned model's)."""
    tokens = {i: token for token, i in base.items()}
    return {i: (tokens[i], token) for token, i in sorted(tuned.items()) if tokens.get(i, token) != token}


def vocabulary_of(path: Path | None) -> dict[str, int] | None:
    """Token → id from tokenizer.json, added tokens included."""
    if path is None or not (path / "tokenizer.json").is_file():
        return None
    try:
        content: dict[str, Any] = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        vocab = content["model"]["vocab"]
        tokens = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
        return tokens | {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path / 'tokenizer.json'}: cannot be read: {error}") from error


def tokenizer_digest(checkpoint: Checkpoint) -> str:
    """A hash of the files that a checkpoint's tokenizer is loaded from; empty where there are none of its own."""
    place = _place(checkpoint)
    content = {} if place is None else _content(place)
    digest = hashlib.sha256()
    for name in sorted(content):
        digest.update(name.encode() + hashlib.sha256(content[name]).digest())
    return digest.hexdigest() if content else ""


def _place(checkpoint: Checkpoint) -> Path | None:
    """Where its tokenizer lies: a directory or a GGUF file; None where there is none on this disk."""
    place = checkpoint.path or Path(checkpoint.source).expanduser()
    return place if place.exists() and (kind_of(place) == "gguf" or _content(place)) else None


def _content(place: Path) -> dict[str, bytes]:
    """The bytes of every file that makes a directory's tokenizer; none for GGUF, which holds it beside the weights."""
    if kind_of(place) == "gguf":
        return {}
    files = {file for pattern in _FILES for file in place.glob(pattern) if file.is_file()}
    return {str(file.relative_to(place)): file.read_bytes() for file in files}


def _rules(tokenizer: PreTrainedTokenizerBase, common: Set[str]) -> dict[str, Any]:
    """Everything besides the vocabulary that decides which tokens a text becomes, by what a person calls it.

    Of added tokens and of scores, those of `common` tokens.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model: dict[str, Any] = content["model"]
    vocabulary, merges = model.pop("vocab", None), model.pop("merges", None)
    scores = {token: score for token, score in vocabulary if token in common} if isinstance(vocabulary, list) else None
    return {
        "merges": merges,
        "scores": scores,
        "model": model,
        "normalizer": content["normalizer"],
        "pre-tokenizer": content["pre_tokenizer"],
        "BOS rule": tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"]),
        "added tokens": {
            token["content"]: {name: flag for name, flag in token.items() if name != "content"}
            for token in content["added_tokens"]
            if token["content"] in common
        },
        "split_special_tokens": tokenizer.split_special_tokens,
        **{name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token")},
        "chat template": tokenizer.chat_template,
    }


def _told(name: str, base: Any, tuned: Any) -> str:
    """A rule that differs, with as much of it as fits a line."""
    if name == "chat template":
        only = "only the base" if not tuned else "only the tuned model" if not base else ""
        return f"{name} ({only} has one)" if only else name
    if name == "added tokens":
        first = next(token for token in sorted({*base, *tuned}) if base.get(token) != tuned.get(token))
        return f"{name} ({first!r})"
    if name == "BOS rule" or name.endswith("_token"):
        return f"{name} ({base!r} and {tuned!r})"
    return "settings of its model" if name == "model" else name


def _require_ordinary_ids(
    base: Checkpoint,
    tuned: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    vocabularies: tuple[Mapping[str, int], Mapping[str, int]],
    renamed: Mapping[int, tuple[str, str]],
) -> None:
    left, right = vocabularies
    added = tokenizer.get_added_vocab()

    def ordinary(token: str) -> bool:
        return token not in added and not _RESERVED.fullmatch(token)

    where = [f"id {i} is {a!r} in the base and {b!r} here" for i, (a, b) in renamed.items() if ordinary(a)]
    where += [
        f"token {token!r} has id {i} in the base and {right[token]} here"
        for token, i in left.items()
        if right.get(token, i) != i and ordinary(token)
    ]
    if where:
        more = f" (and {len(where) - 1} more)" if len(where) > 1 else ""
        raise CheckpointError(
            f"{tuned.source}: its tokenizer differs from {base.source}'s: {where[0]}{more}; tune and compare with one "
            "tokenizer"
        )


def _renaming(renamed: Mapping[int, tuple[str, str]]) -> str:
    i, (before, after) = next(iter(sorted(renamed.items())))
    return f"{len(renamed)} reserved ids have other tokens in the tuned model (id {i}: {before!r} and {after!r})"
