"""Safetensors files without their values: the files that a model is made of, and what their headers declare.

Nothing here needs torch. A damaged or truncated file is found by its header, before any work.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tv.errors import CheckpointError, first_line

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
#: What torch's Hugging Face storage writer calls its files.
_RANK = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Declared:
    """One tensor of a safetensors file, as its header declares it."""

    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str  # in safetensors' words: BF16, F16, F32, F8_E4M3, …
    file: Path
    start: int  # first byte in the file
    stop: int
    written: tuple[int, int] | None = field(default=None, compare=False)  # the file's size and time of change


def declared(file: Path) -> tuple[list[Declared], dict[str, Any]]:
    """The tensors that a safetensors file declares, and its metadata.

    Raises CheckpointError where it cannot be read, or is shorter than it says.
    """
    try:
        written = when_written(file)
        size = written[0]
        with open(file, "rb") as handle:
            length = struct.unpack("<Q", handle.read(8))[0]
            if length > size - 8:
                raise ValueError("its header is cut off")
            entries = json.loads(handle.read(length), object_pairs_hook=_without_twins)
        metadata = dict(entries.pop("__metadata__", None) or {})
        start = 8 + length
        tensors = [
            Declared(name, _sizes(name, e["shape"]), e["dtype"], file, start + first, start + last, written)
            for name, e in entries.items()
            for first, last in [e["data_offsets"]]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file: {first_line(error)}") from error
    odd = next((tensor.name for tensor in tensors if not start <= tensor.start <= tensor.stop), None)
    if odd is not None:
        raise CheckpointError(f"{file}: its header gives tensor {odd!r} an impossible place; download it again")
    in_order = sorted((tensor for tensor in tensors if tensor.start < tensor.stop), key=lambda tensor: tensor.start)
    for one, other in pairwise(in_order):
        if other.start < one.stop:
            names = f"{one.name!r} and {other.name!r}"
            raise CheckpointError(f"{file}: its header gives tensors {names} one place; download it again")
    end = max((tensor.stop for tensor in tensors), default=start)
    if size < end:
        raise CheckpointError(f"{file}: truncated: {size:,} bytes of {end:,}; download it again")
    return tensors, metadata


def when_written(file: Path) -> tuple[int, int]:
    """The size of a file and the time of its last change."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _sizes(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"tensor {name!r} has the shape {shape!r}")
    return tuple(shape)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate names, of which readers keep different values."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twin = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise ValueError(f"{twin!r} stands in its header twice")
    return entries


def header_of(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]) -> bytes:
    """A safetensors header of (name, dtype in its words, shape, bytes): 8 bytes of length, then JSON, padded to 8."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    start = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def holds_weights(directory: Path) -> bool:
    """Whether a model's safetensors lie in this directory."""
    return any((directory / name).is_file() for name in (_INDEX, _SINGLE)) or bool(of_ranks(directory))


def weight_files(directory: Path, named: str | None = None) -> list[Path]:
    """The safetensors files that make up a model, chosen as transformers chooses.

    Files of torch's Hugging Face storage writer come first, then what the configuration names, then
    model.safetensors, then the shards of an index.

    Args:
        directory: Of the model.
        named: The file or index that its configuration names (`transformers_weights`), if it names one.

    Raises:
        CheckpointError: There is none, or one is missing.

    Examples:
        >>> [file.name for file in weight_files(Path("data/models/base"))]
        ['model.safetensors']
    """
    if of_ranks(directory):
        return sorted(directory.glob("*.safetensors"))
    if named is not None:
        if Path(named).name != named or not named.endswith((".safetensors", ".safetensors.index.json")):
            raise CheckpointError(
                f"{directory / 'config.json'}: transformers_weights is {named!r}, which is no safetensors file or "
                "index in that directory"
            )
        if not (directory / named).is_file():
            raise CheckpointError(f"{directory / named}: this file is missing, and config.json names it; download it")
        return _shards(directory / named) if named.endswith(".json") else [directory / named]
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    if (directory / _INDEX).is_file():
        return _shards(directory / _INDEX)
    pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
    if pickled:
        raise CheckpointError(f"{directory}: holds pickled weights only, which are not read; save them as safetensors")
    raise CheckpointError(f"{directory}: no {_SINGLE}; download it, or pass the GGUF file")


def passed_over(directory: Path, files: list[Path]) -> tuple[str, ...]:
    """A note where a directory holds an index of other weights than these files, which are read."""
    index = directory / _INDEX
    with suppress(CheckpointError):  # an index that nobody reads may be damaged
        if not index.is_file() or files == _listed(index):
            return ()
    return (f"{directory}: {files[0].name} is read, as transformers reads it; {_INDEX} beside it names other files",)


def of_ranks(directory: Path) -> list[Path]:
    """The files in a directory that torch's Hugging Face storage writer wrote, which lets each rank write its own."""
    return [file for file in directory.glob("shard-*.safetensors") if _RANK.fullmatch(file.name)]


def _shards(index: Path) -> list[Path]:
    """The files that an index lists. Raises CheckpointError where one is missing."""
    files = _listed(index)
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise CheckpointError(f"{missing}: this shard is missing; download it again")
    return files


def _listed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a valid index of shards: {first_line(error)}") from error
    odd = next((name for name in names if not isinstance(name, str) or Path(name).name != name), None)
    if odd is not None:
        raise CheckpointError(f"{index}: shard {odd!r} is not a plain file name in that directory")
    return [index.parent / name for name in names]
