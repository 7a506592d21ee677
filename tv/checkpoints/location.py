"""Where a source lies on disk, and what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tv.checkpoints.safetensors_files import holds_weights
from tv.errors import CheckpointError, first_line

Kind = Literal["model", "adapter", "vector", "gguf"]

#: Files beside the weights that hold for a tuned model too: tokenizer, processor, generation, licence. They go by the
#: names that transformers and mistral-common give them: anything else may lie in a folder as well.
BESIDE = (
    *("tokenizer.*", "*tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("vocab.*", "*_vocab.json", "merges.txt", "bpe.codes", "dict.txt", "emoji.json", "normalizer.json", "*.tiktoken"),
    *("spiece.model", "sentencepiece*.model", "spm*.model", "*.spm", "*processor_config.json"),
    *("*.jinja", "chat_template.json", "additional_chat_templates/*.jinja", "generation_config.json", "LICENSE*"),
)
_DOWNLOADED = ("*.safetensors", "*.json", *BESIDE)
#: Copies of the weights in other formats lie in folders. To the hub a `*` stands for a `/` too.
_LEFT = tuple(f"*/{pattern}" for pattern in _DOWNLOADED if not pattern.endswith(".jinja"))


@dataclass(frozen=True)
class HubId:
    """A model of the hub: `org/name`, or `org/name@revision`."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def place_of(source: str | Path, revision: str | None = None) -> Path | HubId:
    """Where a source lies: a path that exists, or else a hub id, in which `@` parts name and revision.

    The disk is asked first, with the whole string: a directory's name may hold an `@`. `revision` is of a hub id.
    """
    text = str(source)
    path = Path(os.path.expanduser(source))  # ~name of nobody here is left as it is
    if text and os.path.exists(path):
        return path
    name, at, named = text.rpartition("@")
    return HubId(name, revision or named) if at and name and named else HubId(text, revision)


def for_transformers(place: Path | HubId) -> tuple[str, str | None]:
    """(name or path, revision), as `from_pretrained` takes them.

    Raises CheckpointError for a revision of what lies on the disk, where `from_pretrained` would read that.
    """
    if isinstance(place, Path):
        return str(place), None
    if place.revision is not None and place.name and os.path.exists(os.path.expanduser(place.name)):
        raise CheckpointError(
            f"{place}: no such directory; {place.name} is a local directory, and a directory has no revisions: leave "
            f"out '@{place.revision}'"
        )
    return place.name, place.revision


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The directory or file of a source: itself, or the snapshot of a hub id.

    Raises CheckpointError where there is none.
    """
    place = place_of(source, revision)
    if isinstance(place, Path):
        return place
    from huggingface_hub import snapshot_download  # here, as below: what lies on the disk needs no hub

    patterns = {"allow_patterns": list(_DOWNLOADED), "ignore_patterns": list(_LEFT)}
    return _fetched(place, source, partial(snapshot_download, **patterns))


def locate_config(source: str | Path, revision: str | None = None) -> Path:
    """The configuration of a source: the file itself, that in a directory, or that of a hub id, alone of its files.

    Raises CheckpointError where there is none.
    """
    place = place_of(source, revision)
    if isinstance(place, HubId):
        from huggingface_hub import hf_hub_download

        return _fetched(place, source, partial(hf_hub_download, filename="config.json"))
    file = place if place.is_file() else place / "config.json"
    if file.suffix != ".json" or not file.is_file():
        raise CheckpointError(f"{source}: no config.json; pass a model's directory, its config.json, or a hub id")
    return file


def _fetched(place: HubId, source: str | Path, fetch: Callable[..., str]) -> Path:
    name, revision = for_transformers(place)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"{source}: no such directory")
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(fetch(name, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{source}: no such directory, and it cannot be had from the hub ({first_line(error)}); check the name"
        ) from error


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
