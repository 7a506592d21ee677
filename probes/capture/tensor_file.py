"""Tensors in lists and dicts as JSON knows them, in one file: the same bits, of any dtype."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from probes.errors import RunError
from tv.runtime.atomic import replacing

_TENSOR, _TUPLE = "\0tensor", "\0tuple"  # what no column is called
#: What the last bytes of a file say: where its index begins.
_END = 8


@contextmanager
def tensor_file(path: Path) -> Iterator[TensorFile]:
    """A file to put values in, which is there whole if the context succeeds, else not at all.

    Raises RunError where the disk refuses.
    """
    with replacing(path, RunError) as temporary, open(temporary, "wb") as opened:
        file = TensorFile(opened)
        yield file
        file.finish()


class TensorFile:
    """A file that is being written, value by value."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._index: dict[str, Any] = {}

    def put(self, name: str, value: Any) -> None:
        """Append a value: tensors, numbers, texts, None, and lists, tuples and dicts of them."""
        self._index[name] = self._put(value)

    def finish(self) -> None:
        """Say at the end where the values are."""
        at = self._file.tell()
        self._file.write(json.dumps(self._index, separators=(",", ":")).encode())
        self._file.write(at.to_bytes(_END, "little"))

    def _put(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            at, stride = self._file.tell(), torch.empty_like(value, device="meta").stride()
            if value.numel():
                self._file.write(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            return {_TENSOR: [at, str(value.dtype).removeprefix("torch."), list(value.shape), list(stride)]}
        if isinstance(value, tuple):
            return {_TUPLE: [self._put(item) for item in value]}
        if isinstance(value, list):
            return [self._put(item) for item in value]
        return {key: self._put(item) for key, item in value.items()} if isinstance(value, dict) else value


def index_of(path: Path) -> Mapping[str, Any]:
    """What a file holds, by name, for `value_of`."""
    with open(path, "rb") as file:
        size = file.seek(-_END, 2)
        at = int.from_bytes(file.read(), "little")
        file.seek(at)
        found: Mapping[str, Any] = json.loads(file.read(size - at))
        return found


def value_of(path: Path, entry: Any, device: torch.device) -> Any:
    """A value as it was put; its tensors on a device, each in memory of its own."""
    with open(path, "rb") as file:

        def read(entry: Any) -> Any:
            if isinstance(entry, list):
                return [read(item) for item in entry]
            if not isinstance(entry, dict):
                return entry
            if _TUPLE in entry:
                return tuple(map(read, entry[_TUPLE]))
            if _TENSOR not in entry:
                return {key: read(item) for key, item in entry.items()}
            at, name, shape, stride = entry[_TENSOR]
            dtype = getattr(torch, name)
            made = torch.empty_strided(shape, stride, dtype=dtype)  # aligned as torch does it: products depend on that
            if n := math.prod(shape):
                file.seek(at)
                made.copy_(torch.frombuffer(bytearray(file.read(n * dtype.itemsize)), dtype=dtype).view(shape))
            return made.to(device)

        return read(entry)
