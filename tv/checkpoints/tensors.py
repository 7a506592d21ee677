"""Tensors of safetensors files, read one at a time, or one slice of one.

A large tensor is mapped from its own place in the file, so that what is held is what was asked for, not the whole file.
Nothing is unpickled.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.safetensors_files import Declared, declared, when_written
from tv.errors import CheckpointError, first_line
from tv.runtime.common_rows import common_rows
from tv.runtime.memory import RELIEF, require_memory

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


class Stored(Declared):
    """One tensor of a safetensors file, as its header declares it, which can be read."""

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
        if self.written in (None, when_written(self.file)):
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


def sample_of(path: Path, start: int, stop: int) -> bytes:
    """The first and the last bytes of a range of a file."""
    with open(path, "rb") as file:
        file.seek(start)
        first = file.read(min(_SAMPLED_BYTES, stop - start))
        file.seek(max(start, stop - _SAMPLED_BYTES))
        return first + file.read(min(_SAMPLED_BYTES, stop - start))


def header(file: Path) -> list[Stored]:
    """The tensors that a safetensors file declares. Raises CheckpointError where the file is shorter than it says."""
    return [Stored(**vars(one)) for one in declared(file)[0]]


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
