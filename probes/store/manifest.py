"""The manifest of a run: what it was made of, and how many rows and files each of its tables has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from probes.errors import RunError
from probes.store import remote
from probes.store.digests import OWN, digest_of
from probes.store.remote import Place
from tv.runtime.atomic import replacing

#: The file that marks a directory as a run and says what is in it.
MANIFEST = "manifest.json"
#: The stages of a job, in order. A manifest lists those that are done; without a list, all are.
STAGES = ("weights", "capture", "noise_floor", "discover", "attribute", "link", "report")
_ADVICE = "the run is damaged, make it again"


class _Mapping(dict[str, Any]):
    """A mapping in a manifest. A missing key is a mistake in the file once a reader asks for it."""

    def __init__(self, path: Place, pairs: Mapping[str, Any]) -> None:
        super().__init__(pairs)
        self._path = path

    def __missing__(self, key: str) -> NoReturn:
        raise RunError(f"{self._path}: {key} is missing; {_ADVICE}")


class _Form(BaseModel):
    model_config = ConfigDict(strict=True)


class _Counts(_Form):
    rows: int
    files: int


class _Suite(_Form):
    name: str = ""
    base: str = ""
    tuned: dict[str, str] = {}
    seed: int = 0
    bootstrap: int = 0
    attribute: dict[str, Any] | None = None


class _Architecture(_Form):
    name: str = ""
    n_layers: int = 0
    d_model: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0
    gated: bool = True
    parts: list[dict[str, list[str]]] = []
    in_words: str = ""


class _Checkpoint(_Form):
    source: str = ""
    fingerprint: dict[str, Any] = {}


class _Manifest(_Form):
    """The fields that are read from a manifest, where present."""

    tables: dict[str, _Counts]
    suite: _Suite = _Suite()
    seed: int = 0
    versions: dict[str, str] = {}
    computed: dict[str, Any] = {}
    stages: list[str] = []
    architecture: _Architecture = _Architecture()
    checkpoints: dict[str, _Checkpoint] = {}
    sameness: dict[str, dict[str, Any]] = {}
    notes: dict[str, list[str]] = {}
    left_out: list[str] = []
    coverage: dict[str, dict[str, Any]] = {}
    shards: dict[str, list[str]] = {}
    n_prompts: int = 0
    n_tokens: int = 0


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest with its own digest, whole or not at all."""
    signed = {**manifest, OWN: digest_of(manifest)}
    with replacing(directory / MANIFEST, RunError) as temporary:
        temporary.write_text(json.dumps(signed, indent=1, ensure_ascii=False), encoding="utf-8")


def read_manifest(directory: Place) -> dict[str, Any] | None:
    """The manifest of a run of this program, else None. A missing key raises RunError when it is asked for."""
    path = directory / MANIFEST
    try:
        content = remote.content_of(path) or b""
        manifest = json.loads(content, object_hook=partial(_Mapping, path))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema_version"), int):
        return None
    tables, suite = manifest.get("tables"), manifest.get("suite", {})
    ours = (
        isinstance(tables, dict)
        and isinstance(suite, dict)
        and all(isinstance(t, dict) and {"rows", "files"} <= set(t) for t in tables.values())
    )
    return manifest if ours else None


def require_form(directory: Place, manifest: Mapping[str, Any]) -> None:
    """Raise RunError where a value of a manifest is not what a run of this program writes there."""
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        mistake = error.errors()[0]
        place = ".".join(map(str, mistake["loc"]))
        said = mistake["msg"].replace("Input should", "should")
        raise RunError(f"{directory / MANIFEST}: {place}: {said}; {_ADVICE}") from None


def stages_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages that a run has done, in order."""
    done = manifest.get("stages", STAGES)
    return tuple(stage for stage in STAGES if stage in done)


def suite_name(manifest: Mapping[str, Any]) -> str:
    """The name of a run's suite."""
    suite = manifest.get("suite")
    return str(suite.get("name", "unnamed") if isinstance(suite, dict) else suite or "unnamed")
