"""The header of a safetensors file, and every tensor that it declares."""

from __future__ import annotations

from pathlib import Path

from fuzz.oracle import is_read
from tv.checkpoints.safetensors_files import header_of
from tv.checkpoints.tensors import header

_TENSORS = [("a", "F32", (2, 3), 24), ("b", "BF16", (2,), 4), ("c", "F8_E4M3", (), 1), ("d", "I64", (0, 3), 0)]
SEEDS = [header_of(_TENSORS, {"k": "v"}) + bytes(29), header_of([], {}), header_of(_TENSORS[:1], {}) + bytes(23)]


def target(data: bytes) -> bool:
    """Whether these bytes are a file of tensors."""
    return is_read({"model.safetensors": data}, _read)


def _read(here: Path) -> None:
    for tensor in header(here / "model.safetensors"):
        tensor.sample()
        tensor.load()
