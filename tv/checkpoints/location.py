"""Where a source lies on disk, and what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from tv.checkpoints.tensors import holds_weights
from tv.errors import CheckpointError, first_line

Kind = Literal["model", "adapter", "vector", "gguf"]

_DOWNLOADED = ("*.safetensors", "*.json", "tokenizer*", "merges.txt", "*.jinja")
_LEFT = "*/*"  # copies of the weights in other formats lie in folders


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The directory or file of a source: itself, or the snapshot of a hub id (`org/name`, `org/name@revision`).

    Raises CheckpointError where there is none.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    name, named = hub_id(str(source))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"{source}: no such directory")
    try:
        return Path(
            snapshot_download(name, revision=revision or named, allow_patterns=list(_DOWNLOADED), ignore_patterns=_LEFT)
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{source}: no such directory, and it cannot be had from the hub ({first_line(error)}); check the name"
        ) from error


def hub_id(source: str) -> tuple[str, str | None]:
    """(name, revision) of `org/name@revision`; the revision None where none is given."""
    name, at, revision = source.rpartition("@")
    return (name, revision) if at and name and revision else (source, None)


def kind_of(path: Path) -> Kind:
    """What lies at a path. Raises CheckpointError for a file of no known kind, and for a directory of two kinds."""
    if path.is_file():
        kinds: dict[str, Kind] = {".safetensors": "vector", ".gguf": "gguf"}
        if path.suffix in kinds:
            return kinds[path.suffix]
        raise CheckpointError(
            f"{path} is a file; pass the directory that holds config.json and the safetensors, a tuning vector "
            "(.safetensors) or a .gguf file"
        )
    if (path / "adapter_config.json").is_file():
        if holds_weights(path):
            raise CheckpointError(f"{path}: holds both a model and an adapter; move one to a directory of its own")
        return "adapter"
    return "gguf" if not holds_weights(path) and any(path.glob("*.gguf")) else "model"
