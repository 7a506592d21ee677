"""Columns of many kinds, cast to a table's schema and written as one whole Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from probes.errors import RunError
from probes.store.schemas import BITS, INT, NAME, PARTITIONS, REAL, SCHEMAS, SMALL, TEXT
from tv.runtime.atomic import replacing

Columns: TypeAlias = pd.DataFrame | pa.Table | Mapping[str, Any]

#: The least that is read of a file. Smaller groups make a prompt's rows faster to read, and a layer's slower.
_ROWS_PER_GROUP = {"gates": 4096, "vectors": 1024}


@dataclass(frozen=True)
class Named:
    """A column of names, as an index into the distinct ones."""

    codes: NDArray[np.int32]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.codes)


def write_part(
    directory: Path,
    table: str,
    columns: Columns,
    *,
    shard: str,
    tuned: str | None = None,
    layer: int | None = None,
    site: str | None = None,
) -> int:
    """Write one shard of a table below `directory`, cast to its schema, whole or not at all; return its rows.

    `columns` is a DataFrame, an Arrow table or a mapping of arrays; in a mapping a scalar stands for a constant column,
    `Named` for a column of names, and packed gates may be a uint8 array (n, bytes). `tuned`, `layer` and `site`
    name the partition of a partitioned table, and are constant columns of any other. Rows should be sorted by prompt.
    Raises ValueError for columns that are not the schema's, and RunError where the disk refuses.
    """
    given = (("tuned", tuned), ("site", site), ("layer", layer))
    keys = {name: value for name, value in given if value is not None}
    partition = PARTITIONS.get(table, ())
    if missing := [name for name in partition if name not in keys]:
        raise ValueError(f"{table} is partitioned by {', '.join(partition)}: pass {', '.join(missing)}")
    body = cast(table, columns, {k: v for k, v in keys.items() if k not in partition}, partition)
    folder = directory / "tables" / table
    for name in partition:
        folder /= f"{name}={quote(str(keys[name]), safe='')}"
    write(table, body, folder / f"part-{shard}.parquet")
    return body.num_rows


def write(table: str, body: pa.Table, path: Path) -> None:
    """Write `body`, a shard of `table`, to `path`. Raises RunError where the disk refuses."""
    reals = [entry.name for entry in body.schema if entry.type == REAL]
    ids = [entry.name for entry in body.schema if entry.type in (NAME, SMALL, INT, pa.float64())]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path.parent}: cannot be created: {error.strerror}") from error
    with replacing(path, RunError) as temporary:
        pq.write_table(
            body,
            temporary,
            compression="zstd",
            use_dictionary=ids,
            column_encoding=dict.fromkeys(reals, "BYTE_STREAM_SPLIT") or None,
            write_statistics=ids,
            write_page_checksum=True,
            store_schema=False,  # Arrow prunes row groups by names only where it takes them for plain strings
            row_group_size=_ROWS_PER_GROUP.get(table, 8192),
        )


def cast(table: str, columns: Columns, constants: Mapping[str, Any], left_out: Iterable[str]) -> pa.Table:
    """`columns` and `constants` as the schema of `table` has them, without the columns `left_out`.

    Raises ValueError for columns that are not the schema's.
    """
    schema = pa.schema([entry for entry in SCHEMAS[table] if entry.name not in left_out])
    names = columns.column_names if isinstance(columns, pa.Table) else list(columns)
    given: dict[str, Any] = {**constants, **{str(name): columns[name] for name in names}}
    if wrong := [name for name in given if name not in schema.names]:
        raise ValueError(f"{table} has no column {', '.join(wrong)}")
    if wrong := [name for name in schema.names if name not in given]:
        raise ValueError(f"{table} lacks {', '.join(wrong)}")
    n = next((len(value) for value in given.values() if not _is_scalar(value)), 1)
    arrays = [_array(table, entry, given[entry.name], n) for entry in schema]
    return pa.table(arrays, names=schema.names)


def _array(table: str, entry: pa.Field, values: Any, n: int) -> pa.Array:
    try:
        if isinstance(values, Named):
            return pa.DictionaryArray.from_arrays(pa.array(values.codes, pa.int32()), pa.array(values.names, TEXT))
        if _is_scalar(values):
            if entry.type == NAME and isinstance(values, str):
                return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([values], TEXT))
            array = pa.array([values] * n, from_pandas=True)
        elif entry.type == BITS:
            return _bits(values)
        else:
            array = values if isinstance(values, pa.Array | pa.ChunkedArray) else _from_python(values)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if entry.type == NAME:
            return array.cast(TEXT).dictionary_encode()
        return array.cast(entry.type)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"{table}.{entry.name}: {error}") from error


def _from_python(values: Any) -> pa.Array:
    """NaN becomes null, so that averages in SQL skip unmeasured values."""
    is_tensor = hasattr(values, "detach")
    return pa.array(values.detach().cpu().numpy() if is_tensor else values, from_pandas=True)


def _bits(values: Any) -> pa.Array:
    """Rows of bytes as fixed_size_binary: from an array (n, entries), or from n bytes objects of one length."""
    if getattr(values, "ndim", 1) == 2:
        values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
        packed = np.ascontiguousarray(values).view(np.uint8)
        return pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(packed.shape[1]), len(packed), [None, pa.py_buffer(packed.tobytes())]
        )
    values = list(values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values)
    return pa.array(values, pa.binary(len(values[0]) if values else 1))


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bytes | bool | int | float | np.generic)
