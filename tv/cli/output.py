"""Tables as files: whole or absent, and refused before any work where they cannot be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tv.cli.terminal import plain, wrote
from tv.errors import CheckpointError
from tv.runtime.atomic import replacing

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def check_output(path: Path | None) -> None:
    """Raise CheckpointError where no table can be written to `path`."""
    if path is not None and path.suffix not in _WRITERS:
        raise CheckpointError(f"{path}: unknown ending {path.suffix!r}; use {', '.join(_WRITERS)}")
    if path is not None and not path.resolve().parent.is_dir():
        raise CheckpointError(f"{path}: its directory does not exist; create it first")


def write(frame: pd.DataFrame, path: Path | None) -> None:
    """Write `frame` as its ending says, if a path was given; every row names the fingerprints of its checkpoints."""
    if path is None:
        return
    import pyarrow as pa

    frame = frame.assign(
        **{f"fingerprint_{name}": value for name, value in frame.attrs.get("fingerprints", {}).items()}
    )
    write_table(pa.Table.from_pandas(frame, preserve_index=False), path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write `table` as the ending of `path` says; in .csv and .json bytes are hexadecimal text."""
    with replacing(path, CheckpointError) as temporary:
        _WRITERS[path.suffix](table, temporary)
    wrote(path, f"{table.num_rows:,} rows")


def _to_parquet(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path)


def _to_csv(table: pa.Table, path: Path) -> None:
    import pyarrow as pa

    for i, field in enumerate(table.schema):
        if any(is_bytes(field.type) for is_bytes in (pa.types.is_binary, pa.types.is_fixed_size_binary)):
            table = table.set_column(i, field.name, pa.array(plain(table[i].to_pylist()), pa.string()))
    # Whole numbers stay whole where some are missing.
    table.to_pandas(integer_object_nulls=True).to_csv(path, index=False)


def _to_json(table: pa.Table, path: Path) -> None:
    # Not by pandas, which rounds to ten decimal places, too few for a p-value.
    path.write_text(json.dumps(plain(table.to_pylist())), encoding="utf-8")


_WRITERS = {".parquet": _to_parquet, ".csv": _to_csv, ".json": _to_json}
