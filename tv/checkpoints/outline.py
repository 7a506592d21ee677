"""What a configuration alone says of a model: names and shapes of its parameters, and no weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from tv.checkpoints.parameters import TensorInfo, Tensors
from tv.checkpoints.tree import Tree
from tv.errors import CheckpointError

#: Endings of files that may hold a model.
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".index.json")


class OutlineTensors(Tensors):
    """The parameters that a model of this configuration has. Reading one raises CheckpointError."""

    native = False

    def __init__(self, source: str, tree: Tree) -> None:
        self.source = source
        self.infos = {name: TensorInfo(name, shape, tree.dtype) for name, shape in tree.parameters.items()}
        self.beside = {name: TensorInfo(name, shape, tree.dtype) for name, shape in tree.buffers.items()}
        self.notes = (f"{source}: a configuration without weights; this is the model that it describes",)

    def read(self, name: str, expert: int = -1) -> NoReturn:
        raise CheckpointError(f"{self.source}: a configuration without weights, so {name!r} cannot be read")

    def sample(self, name: str) -> bytes:
        return b""


def is_outline(place: Path) -> bool:
    """Whether a configuration lies here and no weights: a file of JSON, or the directory of a config.json."""
    if place.is_file():
        return place.suffix == ".json"
    names = [path.name for path in place.iterdir()] if place.is_dir() else []
    return "config.json" in names and "adapter_config.json" not in names and not _any_weights(names)


def _any_weights(names: Iterable[str]) -> bool:
    return any(name.endswith(_WEIGHTS) for name in names)
