"""Tables as files: whole or absent, and refused before any work where they cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tv.atomic import replacing
from tv.cli.terminal import wrote
from tv.errors import CheckpointError

if TYPE_CHECKING:
    import pandas as pd

_WRITERS = {".parquet": "to_parquet", ".csv": "to_csv", ".json": "to_json"}


def check_output(path: Path | None) -> None:
    """Raise CheckpointError where no table can be written to `path`."""
    if path is not None and path.suffix not in _WRITERS:
        raise CheckpointError(f"{path}: unknown ending {path.suffix!r}; use {', '.join(_WRITERS)}")
    if path is not None and not path.resolve().parent.is_dir():
        raise CheckpointError(f"{path}: its directory does not exist; make it first")


def write(frame: pd.DataFrame, path: Path | None) -> None:
    """Write `frame` as its ending says, if a path was given; every row names the fingerprints of its checkpoints."""
    if path is None:
        return
    frame = frame.assign(
        **{f"fingerprint_{name}": value for name, value in frame.attrs.get("fingerprints", {}).items()}
    )
    options = {"orient": "records"} if path.suffix == ".json" else {"index": False}
    with replacing(path, CheckpointError) as temporary:
        getattr(frame, _WRITERS[path.suffix])(temporary, **options)
    wrote(path, f"{len(frame):,} rows")
