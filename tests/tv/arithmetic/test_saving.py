"""Weights written tensor by tensor: shards, their order, their index."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tv.arithmetic.saving import Entry, write_weights

TENSORS = {
    "a": torch.arange(3).to(torch.bfloat16),  # six bytes: what follows it would lie between two float32s
    "b": torch.randn(4, 5),
    "c": torch.tensor([True, False, True]),
    "d": torch.arange(7),
    "e": torch.tensor(1.5),
    "f": torch.randn(2, 3, 4),
}


def entries() -> list[Entry]:
    found = [Entry(key, value.dtype, tuple(value.shape), partial(iter, [value])) for key, value in TENSORS.items()]
    found[-1] = Entry("f", torch.float32, (2, 3, 4), partial(iter, TENSORS["f"]))  # in pieces, as experts come
    return found


@pytest.mark.parametrize(("shard", "files"), [(10**6, 1), (100, 3), (1, 6)])
def test_any_number_of_files_holds_the_same(shard: int, files: int, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_weights(tmp_path, entries(), {"note": "x"}, shard=shard, progress=lambda *at: seen.append(at[1:3]))
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) == files and seen == [(i + 1, 6) for i in range(6)]
    found = {key: value for path in shards for key, value in load_file(path).items()}
    assert found.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (files > 1)
    if files > 1:
        assert [path.name for path in shards] == [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
        told = json.loads(index.read_text())
        assert told["metadata"]["total_size"] == sum(v.numel() * v.element_size() for v in TENSORS.values())
        assert all(key in load_file(tmp_path / name) for key, name in told["weight_map"].items())
