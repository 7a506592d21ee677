"""Tensors of safetensors files: every header checked first, then one tensor, or one slice of it, at a time.

A large tensor is mapped from its own place in the file, so that what is held is what was asked for, not the whole file.
Nothing is unpickled. Reading the headers detects a truncated shard, before any work.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from tv.errors import CheckpointError, first_line
from tv.runtime.common_rows import common_rows
from tv.runtime.memory import RELIEF, require_memory

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
#: What torch's Hugging Face storage writer calls its files.
_RANK = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_SAMPLED_BYTES = 4096
#: torch's names of them. Not every version of torch has all.
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "C64": "complex64", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
_MAPPED = 2**22  # bytes from which a tensor is mapped, which keeps a file open; smaller ones are read
_BAND = 256  # rows taken to float32 at a time


class Readable(Protocol):
    """What stands for one stored tensor, of a file or made of several: read when it is asked for."""

    @property
    def name(self) -> str:
        """In the files, or as it would be there."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""

    @property
    def dtype(self) -> str:
        """A word of safetensors, or of tv/checkpoints/noise.py."""

    def load(self, index: int = -1) -> Float[Tensor, "..."]:
        """The tensor; with `index` ≥ 0 only that entry of its first dimension."""

    def sample(self) -> bytes:
        """The ends of its bytes, for a fingerprint."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file, as its header declares it."""

    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str  # in safetensors' words: BF16, F16, F32, F8_E4M3, …
    file: Path
    start: int  # first byte in the file
    stop: int
    written: tuple[int, int] | None = field(default=None, compare=False)  # the file's size and time of change

    def load(self, index: int = -1) -> Float[Tensor, "..."]:
        """The tensor as stored; with `index` ≥ 0 only that entry of its first dimension. Writing to it changes no file.

        Raises CheckpointError where it cannot be read.
        """
        try:
            there = self._there()
            shape, start, stop = there.shape, there.start, there.stop
            if index >= 0:
                size = (stop - start) // shape[0]
                shape, start, stop = shape[1:], start + index * size, start + (index + 1) * size
            return _values(self.file, start, stop, there._dtype()).reshape(shape)
        except (OSError, ValueError, RuntimeError) as error:
            require_memory(error, f"{self.file}: reading {self.name!r}", RELIEF)
            raise CheckpointError(
                f"{self.file}: tensor {self.name!r} cannot be read: {first_line(error)}; download it again"
            ) from error

    def entries(self, indices: Sequence[int]) -> Float[Tensor, "n ..."]:
        """Some entries of the first dimension of a float tensor, read by their place in the file."""
        dtype, size = self._dtype(), (self.stop - self.start) // self.shape[0]
        with open(self.file, "rb") as file:
            parts = []
            for index in indices:
                file.seek(self.start + index * size)
                parts.append(torch.frombuffer(bytearray(file.read(size)), dtype=dtype).reshape(self.shape[1:]))
        return torch.stack(parts)

    def _there(self) -> Stored:
        """It where it lies now: the file may have been written again since its header was read."""
        if self.written in (None, _written(self.file)):
            return self
        there = next((one for one in header(self.file) if one.name == self.name), None)
        if there is None:
            raise ValueError("it is not in the file any more")
        return there

    def _dtype(self) -> torch.dtype:
        dtype = getattr(torch, _DTYPES.get(self.dtype, ""), None)
        if not isinstance(dtype, torch.dtype):
            what = f"tensor {self.name!r} is stored as {self.dtype}"
            raise CheckpointError(f"{self.file}: {what}, which this torch does not know; use a newer one")
        return dtype

    def sample(self) -> bytes:
        """The ends of its bytes, for a fingerprint."""
        return sample_of(self.file, self.start, self.stop)


def _values(file: Path, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Numbers of a file, a private copy of them, which lie in memory as they lie in a page of the file."""
    if start == stop:
        return torch.empty(0, dtype=dtype)
    page = start - start % mmap.ALLOCATIONGRANULARITY
    with open(file, "rb", buffering=0) as handle:
        large = stop - start >= _MAPPED
        held = mmap.mmap(
            handle.fileno() if large else -1, stop - page, access=mmap.ACCESS_COPY, offset=page if large else 0
        )
        if not large:
            handle.seek(page)
            if handle.readinto(held) < stop - page:
                raise ValueError("the file ends before it")
    return torch.frombuffer(held, dtype=dtype, offset=start - page)


def _written(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def sample_of(path: Path, start: int, stop: int) -> bytes:
    """The first and the last bytes of a range of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        first = file.read(min(_SAMPLED_BYTES, stop - start))
        file.seek(max(start, stop - _SAMPLED_BYTES))
        return first + file.read(min(_SAMPLED_BYTES, stop - start))


def holds_weights(directory: Path) -> bool:
    """Whether a model's safetensors lie in this directory."""
    return any((directory / name).is_file() for name in (_INDEX, _SINGLE)) or bool(of_ranks(directory))


def stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of safetensors files by its name there.

    Raises CheckpointError: a truncated or damaged file, one tensor twice.
    """
    tensors: dict[str, Stored] = {}
    for file in files:
        for tensor in header(file):
            if tensor.name in tensors:
                other = tensors[tensor.name].file
                raise CheckpointError(f"{file}: tensor {tensor.name!r} is also in {other}; remove one")
            tensors[tensor.name] = tensor
    return tensors


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


def header(file: Path) -> list[Stored]:
    """The tensors a safetensors file declares. Raises CheckpointError where the file is shorter than it says."""
    try:
        written = _written(file)
        size = written[0]
        with open(file, "rb") as handle:
            length = struct.unpack("<Q", handle.read(8))[0]
            if length > size - 8:
                raise ValueError("its header is cut off")
            entries = json.loads(handle.read(length), object_pairs_hook=_without_twins)
        entries.pop("__metadata__", None)
        start = 8 + length
        tensors = [
            Stored(name, _sizes(name, e["shape"]), e["dtype"], file, start + first, start + last, written)
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
    return tensors


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


def difference(after: Float[Tensor, "..."], before: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """after − before in float32, of the rows that both have. Neither side is copied to float32 as a whole."""
    if not after.ndim:
        return after.float() - before.float()
    after, before = common_rows(after, before)
    out = torch.empty(after.shape)
    for i in range(0, len(after), _BAND):
        part = slice(i, i + _BAND)
        torch.sub(after[part].float(), before[part].float(), out=out[part])
    return out
