"""How two checkpoints differ: names, shapes, dtypes, settings, tokenizer and template, then values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tv.checkpoints.config_differences import Settings
from tv.errors import CheckpointError
from tv.runtime.progress import reporting
from tv.verifying.headers import Headers, flat, headers_of

if TYPE_CHECKING:
    from torch import Tensor

    from tv.runtime.progress import Progress, ProgressOption

_SHOWN = 5  # tokens that are named
_BAND = 2**22  # entries compared at a time


@dataclass(frozen=True)
class Setting:
    """A setting that differs.

    Attributes:
        key: Its name; of nested ones joined by dots.
        a: Its value in A; None where A has none.
        b: The same of B.
        read: Whether the forward pass may depend on it.
    """

    key: str
    a: Any
    b: Any
    read: bool = True


@dataclass(frozen=True)
class Moved:
    """A tensor whose values differ.

    Attributes:
        name: In the files.
        n: Its entries.
        off: How many differ.
        relative: ‖B − A‖/‖A‖; NaN where it is 0/0, or a quantised tensor has no values of its own.
        largest: The largest |B − A|.
    """

    name: str
    n: int
    off: int
    relative: float
    largest: float


@dataclass(frozen=True)
class Difference:
    """What `tv.diff` found; all of it empty where A and B are the same.

    Attributes:
        kinds: What A and B are: "model", "adapter", "vector" or "gguf".
        only_a: Names of tensors that A alone has.
        only_b: Names that B alone has.
        shapes: (name, A's shape, B's shape) where they differ.
        dtypes: (name, A's dtype, B's dtype) where they differ.
        config: Settings of config.json that differ.
        generation: Settings of generation_config.json that differ.
        tokenizer: A line for each thing in which the tokenizers differ.
        template: The chat templates as a unified diff.
        n_tensors: Tensors that both have.
        values: Tensors whose values differ; None where only headers were read.
        notes: What could not be compared.

    Examples:
        >>> difference = tv.diff("data/models/base", "data/models/medical")
        >>> difference.same, difference.shapes, len(difference.values) > 0
        (False, (), True)
    """

    kinds: tuple[str, str]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    dtypes: tuple[tuple[str, str, str], ...]
    config: tuple[Setting, ...]
    generation: tuple[Setting, ...]
    tokenizer: tuple[str, ...]
    template: tuple[str, ...]
    n_tensors: int
    values: tuple[Moved, ...] | None
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing that was compared differs."""
        found = (self.only_a, self.only_b, self.shapes, self.dtypes, self.config, self.generation)
        return self.kinds[0] == self.kinds[1] and not any((*found, self.tokenizer, self.template, self.values))


def diff(a: str | Path, b: str | Path, *, headers: bool = False, progress: ProgressOption = None) -> Difference:
    """How two checkpoints differ, of any kind and any architecture.

    Args:
        a: A directory (a model or an adapter), a .safetensors or .gguf file, or a hub id.
        b: Another.
        headers: Stop before values: only headers and settings are read, in a moment.
        progress: Called after every tensor; see `Compute.progress`.

    Returns:
        What differs.

    Raises:
        CheckpointError: One of the two cannot be read.

    Examples:
        >>> tv.diff("data/models/base", "data/models/base", headers=True).same
        True
    """
    left, right = headers_of(a), headers_of(b)
    notes = list[str]()
    gguf = "gguf" in (left.kind, right.kind) and left.kind != right.kind
    here, there = (left.tensors.keys(), right.tensors.keys())
    both = [name for name in left.tensors if name in there]
    if gguf:
        notes.append("GGUF names tensors and settings its own way: only values can be compared with another format")
    pairs = [(name, left.tensors[name], right.tensors[name]) for name in both]
    values = None if headers else tuple(_values(left, right, reporting(progress), notes))
    return Difference(
        kinds=(left.kind, right.kind),
        only_a=() if gguf else tuple(sorted(here - there)),
        only_b=() if gguf else tuple(sorted(there - here)),
        shapes=tuple((name, one.shape, two.shape) for name, one, two in pairs if one.shape != two.shape),
        dtypes=tuple((name, one.dtype, two.dtype) for name, one, two in pairs if one.dtype != two.dtype),
        config=() if gguf else tuple(_settings(left.config, right.config)),
        generation=() if gguf else tuple(_settings(left.generation, right.generation)),
        tokenizer=() if gguf else tuple(_tokenizers(left, right)),
        template=tuple(_templates(left, right)),
        n_tensors=len(both),
        values=values,
        notes=tuple(notes),
    )


def _settings(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Setting]:
    kinds = [
        Settings(str(side.get("model_type", "")), {}, {}, declared=[], generation=[], length_is_read=True)
        for side in (left, right)
    ]
    for key in sorted(left.keys() | right.keys()):
        one, other = left.get(key), right.get(key)
        if one != other or type(one) is not type(other):
            read = any(kind.is_read(part) for kind in kinds for part in [key.rpartition(".")[2]])
            yield Setting(key, one, other, read)


def _tokenizers(left: Headers, right: Headers) -> Iterator[str]:
    if bool(left.tokenizer) != bool(right.tokenizer):
        without = left if right.tokenizer else right
        yield f"{without.source} has no tokenizer"
        return
    for name in sorted(left.tokenizer.keys() | right.tokenizer.keys()):
        files = [side.tokenizer.get(name) for side in (left, right)]
        if files[0] is None or files[1] is None:
            yield f"{name}: only in {(left if files[0] is not None else right).source}"
            continue
        one, other = (file.read_bytes() for file in files if file is not None)
        if one == other:
            continue
        if not name.endswith(".json"):
            yield f"{name}: differs"
            continue
        try:
            contents = [json.loads(content) for content in (one, other)]
        except (ValueError, RecursionError):
            yield f"{name}: differs, and is no JSON in one of the two"
            continue
        yield from (f"{name}: {said}" for said in _in_tokenizer(*contents))


def _in_tokenizer(left: Any, right: Any) -> Iterator[str]:
    """What differs in two JSON files of a tokenizer, a line each; the chat template is shown by itself."""
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        yield "differs"
        return
    models = [model for side in (left, right) if isinstance(model := side.get("model"), Mapping)]
    if len(models) == 2:
        words = [_vocabulary(side) for side in (left, right)]
        yield from _words(*words)
        merges = [model.get("merges") for model in models]
        if merges[0] != merges[1]:
            yield f"merges differ ({len(merges[0] or ())} and {len(merges[1] or ())})"
    skipped = ("chat_template", "model.vocab", "model.merges", "added_tokens")
    sides = [{k: v for k, v in flat(side) if k not in skipped} for side in (left, right)]
    for key in sorted(sides[0].keys() | sides[1].keys()):
        one, other = sides[0].get(key), sides[1].get(key)
        if one != other:
            yield f"{key}: {_short(one)} and {_short(other)}"
    flags = [
        {token.get("content"): token for token in side.get("added_tokens") or () if isinstance(token, Mapping)}
        for side in (left, right)
    ]
    odd = [token for token in flags[0].keys() & flags[1].keys() if flags[0][token] != flags[1][token]]
    if odd:
        yield f"added tokens have other flags or ids: {_named(sorted(map(str, odd)))}"


def _vocabulary(content: Mapping[str, Any]) -> dict[str, int]:
    vocab = content["model"].get("vocab") or {}
    if isinstance(vocab, Mapping):
        tokens = dict(vocab)
    else:
        tokens = {str(entry[0]): i for i, entry in enumerate(vocab) if isinstance(entry, list) and entry}
    added = [token for token in content.get("added_tokens") or () if isinstance(token, Mapping)]
    return tokens | {str(token.get("content")): token.get("id", -1) for token in added}


def _words(left: Mapping[str, int], right: Mapping[str, int]) -> Iterator[str]:
    for one, other, side in ((left, right, "first"), (right, left, "second")):
        if only := sorted(one.keys() - other.keys()):
            yield f"{len(only)} tokens only in the {side}: {_named(only)}"
    if moved := sorted(token for token in left.keys() & right.keys() if left[token] != right[token]):
        yield f"{len(moved)} tokens have other ids: {_named(moved)}"


def _named(tokens: list[str]) -> str:
    return ", ".join(map(repr, tokens[:_SHOWN])) + (", …" if len(tokens) > _SHOWN else "")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def _templates(left: Headers, right: Headers) -> Iterator[str]:
    for name in sorted(left.templates.keys() | right.templates.keys()):
        sides = [side.templates.get(name, "").splitlines() for side in (left, right)]
        if left.templates.get(name) != right.templates.get(name):
            names = [f"{side.source}: {name}" if name in side.templates else "none" for side in (left, right)]
            yield from difflib.unified_diff(sides[0], sides[1], names[0], names[1], lineterm="")


def _values(left: Headers, right: Headers, tell: Progress, notes: list[str]) -> Iterator[Moved]:
    pairs = _through_checkpoints(left, right) if "gguf" in (left.kind, right.kind) else _as_stored(left, right)
    total, reads = pairs
    for i, (name, read) in enumerate(reads):
        one, other = read()
        if (moved := _moved(name, one, other)) is not None:
            yield moved
        tell("diff", i + 1, total, name)
    skipped = len(left.tensors.keys() & right.tensors.keys()) - total
    if skipped > 0 and "gguf" not in (left.kind, right.kind):
        notes.append(f"{skipped} tensors have other shapes, so their values are not compared")


def _as_stored(left: Headers, right: Headers) -> tuple[int, Iterator[tuple[str, Any]]]:
    from tv.checkpoints.tensors import stored_tensors

    sides = [stored_tensors(sorted({one.file for one in side.tensors.values()})) for side in (left, right)]
    names = [name for name in sides[0] if name in sides[1] and sides[0][name].shape == sides[1][name].shape]

    def reads() -> Iterator[tuple[str, Any]]:
        for name in names:
            yield name, lambda name=name: (sides[0][name].load(), sides[1][name].load())

    return len(names), reads()


def _through_checkpoints(left: Headers, right: Headers) -> tuple[int, Iterator[tuple[str, Any]]]:
    from tv.checkpoints.opening import open_checkpoint

    sides = [open_checkpoint(side.source) for side in (left, right)]
    names = [name for name in sides[0].names if name in sides[1].names]
    names = [name for name in names if sides[0].info(name).shape == sides[1].info(name).shape]
    if not names:
        raise CheckpointError(f"{left.source} and {right.source} have no parameter in common; use --headers")

    def reads() -> Iterator[tuple[str, Any]]:
        for name in names:
            yield name, lambda name=name: (sides[0].read(name), sides[1].read(name))

    return len(names), reads()


def _moved(name: str, one: Tensor, other: Tensor) -> Moved | None:
    """How two tensors differ; None where they do not."""
    import torch

    if one.dtype == other.dtype and torch.equal(_bits(one), _bits(other)):
        return None
    off, square, size, largest = 0, 0.0, 0.0, 0.0
    for a, b in zip(one.flatten().split(_BAND), other.flatten().split(_BAND), strict=True):
        x, y = a.double(), b.double()
        same = (x == y) | (x.isnan() & y.isnan())
        off += int((~same).sum())
        step = (y - x).masked_fill(same, 0)
        square += float(step.dot(step))
        size += float(x.dot(x))
        largest = max(largest, float(step.abs().max()))
    if not off:
        return None
    return Moved(name, one.numel(), off, (square / size) ** 0.5 if size else float("nan"), largest)


def _bits(value: Tensor) -> Tensor:
    """The bytes of a tensor: NaN and numbers of every width compare by them."""
    import torch

    return value.contiguous().flatten().view(torch.uint8) if value.numel() else value
