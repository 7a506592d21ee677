"""The index of a sharded checkpoint, beside two shards that are there."""

from __future__ import annotations

import json

from fuzz.oracle import is_read
from tv.checkpoints.safetensors_files import header_of, weight_files
from tv.checkpoints.tensors import stored_tensors

_SHARDS = {f"{name}.safetensors": header_of([(name, "F32", (1,), 4)], {}) + bytes(4) for name in "ab"}
SEEDS = [
    json.dumps({"metadata": {"total_size": 8}, "weight_map": {name: f"{name}.safetensors" for name in "ab"}}).encode(),
    b'{"weight_map": {"a": "../a.safetensors", "b": "/b.safetensors", "c": "a\\u0000", "d": ["b.safetensors"]}}',
]


def target(data: bytes) -> bool:
    """Whether these bytes are an index."""
    return is_read({"model.safetensors.index.json": data, **_SHARDS}, lambda path: stored_tensors(weight_files(path)))
