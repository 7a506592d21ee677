"""What an experiment has finished, kept cell by cell, so that it can be stopped and resumed.

A cell is one variant on one task. Its name on disk is a digest of everything that its values depend on: a changed
setting leads to another cell, never to an old result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pyarrow.parquet
import torch

from tv.checkpoints.vector import TuningVector
from tv.errors import InputError
from tv.runtime.atomic import replacing


class Cells:
    """Tables by key: in a directory, or only in memory where none is given."""

    def __init__(self, directory: str | Path | None) -> None:
        """Raises InputError where the directory cannot be made."""
        self._directory = Path(directory) if directory is not None else None
        self._held: dict[str, pd.DataFrame] = {}
        if self._directory is not None:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{self._directory}: cannot be created: {error.strerror or error}") from error

    def find(self, key: Mapping[str, Any]) -> pd.DataFrame | None:
        """The table of this key, or None. An unreadable file counts as missing."""
        name = digest(key)
        if self._directory is None:
            return self._held.get(name)
        path = self._directory / f"{name}.parquet"
        try:
            return pd.read_parquet(path) if path.is_file() else None
        except (OSError, ValueError, pyarrow.ArrowException):
            return None

    def keep(self, key: Mapping[str, Any], table: pd.DataFrame) -> pd.DataFrame:
        """Keep a table, with its key in the file's metadata; returns it as `find` will."""
        name = digest(key)
        if self._directory is None:
            self._held[name] = table
            return table
        path = self._directory / f"{name}.parquet"
        arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"key": _text(key).encode()})
        with replacing(path, InputError) as temporary:
            pyarrow.parquet.write_table(arrow, temporary, compression="zstd")
        return pd.read_parquet(path)


def digest(key: Mapping[str, Any]) -> str:
    """A file's name for a key."""
    return hashlib.sha256(_text(key).encode()).hexdigest()[:24]


def identity(vector: TuningVector) -> str:
    """A digest of a tuning vector's provenance without paths; where that names no content, of its entries."""
    origin = _unplaced(vector.provenance)
    if "content" in _text(origin):
        return hashlib.sha256(_text([origin, sorted(vector.shapes)]).encode()).hexdigest()[:24]
    hasher = hashlib.sha256()
    for name in sorted(vector.names):
        hasher.update(name.encode() + vector[name].contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()[:24]


def _unplaced(value: Any) -> Any:
    """Provenance without the places that its sides were read from."""
    if isinstance(value, Mapping):
        return {name: _unplaced(inner) for name, inner in value.items() if name != "source"}
    return [_unplaced(inner) for inner in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
