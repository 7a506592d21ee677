"""Tensors of safetensors files: every header checked first, then one tensor, or one slice of it, at a time.

Files are memory-mapped and nothing is unpickled. Reading the headers detects a truncated shard, before any work.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tv.errors import CheckpointError, first_line
from tv.runtime.common_rows import common_rows

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_SAMPLED_BYTES = 4096
_BAND = 256  # rows taken to float32 at a time


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file, as its header declares it."""

    name: str  # in the file
    shape: tuple[int, ...]
    dtype: str  # in safetensors' words: BF16, F16, F32, F8_E4M3, …
    file: Path
    start: int  # first byte in the file
    stop: int

    def load(self, index: int = -1) -> Float[Tensor, "..."]:
        """The tensor as stored, from the mapped file; with `index` ≥ 0 only that entry of its first dimension.

        Raises CheckpointError where it cannot be read.
        """
        try:
            with safe_open(self.file, framework="pt") as file:
                if index < 0:
                    return file.get_tensor(self.name)
                return file.get_slice(self.name)[index : index + 1].squeeze(0)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.file}: tensor {self.name!r} cannot be read: {first_line(error)}; download it again"
            ) from error

    def sample(self) -> bytes:
        """The ends of its bytes, for a fingerprint."""
        return sample_of(self.file, self.start, self.stop)


def sample_of(path: Path, start: int, stop: int) -> bytes:
    """The first and the last bytes of a range of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        first = file.read(min(_SAMPLED_BYTES, stop - start))
        file.seek(max(start, stop - _SAMPLED_BYTES))
        return first + file.read(min(_SAMPLED_BYTES, stop - start))


def holds_weights(directory: Path) -> bool:
    """Whether a model's safetensors lie in this directory."""
    return (directory / _INDEX).is_file() or (directory / _SINGLE).is_file()


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """Every tensor of a model directory by its name in the files, single or sharded.

    Raises CheckpointError: no safetensors, a missing or truncated shard, one tensor twice.
    """
    tensors: dict[str, Stored] = {}
    for shard in _shards(directory):
        for tensor in header(shard):
            if tensor.name in tensors:
                other = tensors[tensor.name].file
                raise CheckpointError(f"{shard}: tensor {tensor.name!r} is also in {other}; remove one")
            tensors[tensor.name] = tensor
    return tensors


def header(file: Path) -> list[Stored]:
    """The tensors a safetensors file declares. Raises CheckpointError where the file is shorter than it says."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            length = struct.unpack("<Q", handle.read(8))[0]
            if length > size - 8:
                raise ValueError("its header is cut off")
            entries = json.loads(handle.read(length), object_pairs_hook=_without_twins)
        entries.pop("__metadata__", None)
        start = 8 + length
        tensors = [
            Stored(name, tuple(e["shape"]), e["dtype"], file, *(start + offset for offset in e["data_offsets"]))
            for name, e in entries.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file: {first_line(error)}") from error
    odd = next((tensor.name for tensor in tensors if not start <= tensor.start <= tensor.stop), None)
    if odd is not None:
        raise CheckpointError(f"{file}: its header gives tensor {odd!r} an impossible place; download it again")
    end = max((tensor.stop for tensor in tensors), default=start)
    if size < end:
        raise CheckpointError(f"{file}: truncated: {size:,} bytes of {end:,}; download it again")
    return tensors


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


def _shards(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if not index.is_file():
        if (directory / _SINGLE).is_file():
            return [directory / _SINGLE]
        pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
        hint = "it holds pickled weights only; convert them" if pickled else f"{_SINGLE} is missing"
        raise CheckpointError(f"{directory}: no safetensors: weights load from safetensors alone, and {hint}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a valid index of shards: {first_line(error)}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} is not a plain file name in that directory")
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory / name}: this shard is missing; download it again")
    return [directory / name for name in names]


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
