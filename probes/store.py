"""A finished run, and the tables that are read out of it."""

from __future__ import annotations

import html
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from probes import remote
from probes.errors import RunError
from probes.handle import Table, size_text
from probes.manifest import MANIFEST, read_manifest, require_form, suite_name, write_manifest
from probes.parquet import Columns, cast
from probes.parquet import write as write_parquet
from probes.query import query
from probes.remote import Place, Url, place_of
from probes.schemas import NAME, PARTITIONS, SCHEMA_VERSION, SCHEMAS, TEXT

Where: TypeAlias = "ds.Expression | Sequence[Any] | None"

_FILES: fs.FileSystem = fs.LocalFileSystem()
_FIRST = "part-0.parquet"


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: `run["changes"]` is a table as a DataFrame, `run.df` a part of one."""

    path: Place
    manifest: dict[str, Any] = field(hash=False)

    @property
    def tables(self) -> list[str]:
        """The names of the tables that the run has."""
        return list(self.manifest["tables"])

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.df(table)

    def table(self, name: str) -> Table:
        """A handle on a table, which reads nothing until it is asked. Raises RunError for an unknown table."""
        self._require(name)
        return Table(self, name)

    def size(self, table: str) -> int:
        """Bytes of a table's files."""
        self._require(table)
        return sum(_parts(self.path, table).values())

    def df(self, table: str, columns: Sequence[str] | None = None, where: Where = None) -> pd.DataFrame:
        """A table's columns (default all, in the schema's order), for the rows that pass `where`.

        `where` is a list of (column, operator, value), all of which must hold, e.g. [("layer", "==", 3)], or a
        pyarrow.dataset expression. Only these columns, and the row groups that can hold such rows, are read from disk.
        Names are `str`, not categories; gate patterns are bytes. Raises RunError for an unknown table or column.
        """
        return self.arrow(table, columns, where).to_pandas()

    def arrow(self, table: str, columns: Sequence[str] | None = None, where: Where = None) -> pa.Table:
        """The same as an Arrow table."""
        self._require(table)
        expression = _expression(table, where)
        names = [name for name in SCHEMAS[table].names if columns is None or name in columns]
        _known(table, columns or ())
        try:
            return _dataset(self.path, table, self._without(where)).to_table(columns=names, filter=expression)
        except (pa.ArrowException, OSError) as error:
            problem = str(error).split("\n")[0]
            if "FieldRef" in problem:
                raise RunError(f"{table}: the filter names an unknown column; there are {_names(table)}") from None
            raise RunError(f"{self.path}: table {table} cannot be read: {problem}; make the run again") from error

    def sql(self, statement: str) -> pd.DataFrame:
        """The answer to one SELECT over the run's tables, in DuckDB's dialect; see `probes.query.query`.

        run.sql("SELECT domain, avg(flip_rate) FROM gates JOIN prompts USING (prompt_id) GROUP BY domain")
        """
        return self.sql_arrow(statement).to_pandas()

    def sql_arrow(self, statement: str) -> pa.Table:
        """The same as an Arrow table."""
        return query({name: partial(_dataset, self.path, name) for name in self.tables}, statement)

    def polars(self, table: str, columns: Sequence[str] | None = None, where: Where = None) -> Any:
        """The same as `df`, as a polars DataFrame. Raises RunError where polars is not installed."""
        try:
            import polars
        except ImportError:
            raise RunError("polars is not installed: pip install polars, or use .df or .arrow") from None
        return polars.from_arrow(self.arrow(table, columns, where))

    def vectors(
        self, site: str, layer: int, *, tuned: str | None = None, model: str = "tuned", where: Where = None
    ) -> tuple[pd.DataFrame, NDArray[np.float16]]:
        """The vectors that the suite kept of a site: their places (`prompt_id pos`), and an array (places, width).

        `model` is "base" or "tuned", and `tuned` names the pair where there are several. The array is a read-only view
        of what Arrow read. Raises RunError where the run kept no such vectors.
        """
        if model not in ("base", "tuned"):
            raise RunError(f"model {model!r}: base or tuned")
        column = f"vector_{model}"
        names = list(self.manifest["suite"]["tuned"])
        if tuned is None and len(names) > 1:
            raise RunError(f"vectors of which pair? tuned is one of {', '.join(names)}")
        own = [("site", "==", site), ("layer", "==", layer), ("tuned", "==", tuned or names[0])]
        whole = _expression("vectors", own)
        part = _expression("vectors", where)
        found = self.arrow("vectors", ["prompt_id", "pos", column], whole if part is None else whole & part)
        if not found.num_rows:
            raise RunError(f"{self.path}: no vectors of {site} in layer {layer}; add it to `keep` in the suite")
        values = found[column].combine_chunks()
        starts = np.frombuffer(values.buffers()[1], np.int32, len(values) + 1, 4 * values.offset)
        flat = np.frombuffer(values.buffers()[2], np.float16, (starts[-1] - starts[0]) // 2, starts[0])
        return found.drop_columns([column]).to_pandas(), flat.reshape(len(values), -1)

    def add(self, table: str, columns: Columns) -> None:
        """Add a table without partitions to the run, or replace it. Raises ValueError for wrong columns."""
        if table in PARTITIONS:
            raise ValueError(f"{table} is partitioned; only a RunWriter writes it")
        body = cast(table, columns, {}, ())
        self.manifest["tables"][table] = {"rows": body.num_rows, "files": 1}
        if isinstance(self.path, Url):
            with tempfile.TemporaryDirectory() as here:
                write_parquet(table, body, Path(here) / _FIRST)
                remote.upload(Path(here), self.path / f"tables/{table}")
                write_manifest(Path(here), self.manifest)
                others = [name for name in _parts(self.path, table) if name != _FIRST]
                remote.remove(self.path / f"tables/{table}", others)
                remote.upload(Path(here), self.path, [MANIFEST])
            return
        folder = self.path / "tables" / table
        write_parquet(table, body, folder / _FIRST)
        for path in folder.glob("*.parquet"):
            if path.name != _FIRST:
                path.unlink()
        write_manifest(self.path, self.manifest)

    def drop(self, table: str) -> None:
        """Take a table out of the run, if it has it."""
        if self.manifest["tables"].pop(table, None) is None:
            return
        if isinstance(self.path, Url):
            with tempfile.TemporaryDirectory() as here:
                write_manifest(Path(here), self.manifest)
                remote.upload(Path(here), self.path, [MANIFEST])
                remote.remove(self.path / f"tables/{table}")
            return
        write_manifest(self.path, self.manifest)
        shutil.rmtree(self.path / "tables" / table, ignore_errors=True)

    def _without(self, where: Where) -> frozenset[str]:
        """Names of files that hold no row of the prompts that are asked for, by what the manifest says of shards."""
        shards: dict[str, list[str]] = self.manifest.get("shards", {})
        wanted: set[str] | None = None
        for clause in where if isinstance(where, list) else ():
            if isinstance(clause, tuple) and len(clause) == 3 and clause[0] == "prompt_id" and clause[1] in ("==", "="):
                wanted = {clause[2]} if wanted is None else wanted & {clause[2]}
        if wanted is None:
            return frozenset()
        return frozenset(f"part-{name}.parquet" for name, prompts in shards.items() if wanted.isdisjoint(prompts))

    def _require(self, table: str) -> None:
        if table not in self.manifest["tables"]:
            raise RunError(f"{self.path}: no table {table!r}; there are {', '.join(self.tables)}")

    def _shown(self) -> list[tuple[str, str, str, str]]:
        """Name, rows, columns and size of every table."""
        handles = map(self.table, self.tables)
        return [(own.name, f"{len(own):,}", str(len(own.columns)), size_text(own.size)) for own in handles]

    def __repr__(self) -> str:
        lines = [
            f"  {name:<15}{rows:>14} rows{columns:>5} columns{size:>10}" for name, rows, columns, size in self._shown()
        ]
        return "\n".join([f"Run {str(self.path)!r} (suite {suite_name(self.manifest)})", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in self._shown())
        title = html.escape(f"{self.path} (suite {suite_name(self.manifest)})")
        head = "<tr><th>table</th><th>rows</th><th>columns</th><th>size</th></tr>"
        return f"<table><caption>{title}</caption>{head}{rows}</table>"


def load(path: str | Path) -> Run:
    """Open a finished run: a directory's path or a URL (s3://bucket/run).

    Raises RunError where it is none, is newer than this program, or lacks or broke a file.
    """
    directory = place_of(path)
    manifest = read_manifest(directory)
    if manifest is None:
        raise RunError(f"{path}: not a run directory (no readable {MANIFEST}); pass what `probes run --out` wrote")
    if (written := manifest["schema_version"]) != SCHEMA_VERSION:
        advice = (
            "update it" if written > SCHEMA_VERSION else "make the run again, or read its Parquet files by themselves"
        )
        raise RunError(
            f"{path}: its tables have schema version {written}, and this program reads {SCHEMA_VERSION}; {advice}"
        )
    require_form(directory, manifest)
    for table, counts in manifest["tables"].items():
        if table not in SCHEMAS:
            raise RunError(f"{path}: unknown table {table!r} in {MANIFEST}; it is not a run of this program")
        parts = _parts(directory, table)
        if len(parts) != counts["files"]:
            raise RunError(
                f"{path}: table {table} has {len(parts)} of its {counts['files']} files; "
                "the run is damaged, make it again"
            )
        if isinstance(directory, Path):  # at a URL a file is whole or absent
            for part in (directory / "tables" / table / name for name in parts):
                if not is_whole(part):
                    raise RunError(f"{part}: not a whole Parquet file; the run is damaged, make it again")
    return Run(directory, manifest)


def _parts(directory: Place, table: str) -> dict[str, int]:
    """Sizes of a table's files, by path below the table's directory; by tuned model, layer and shard."""
    folder = directory / f"tables/{table}"
    if isinstance(folder, Url):
        found = remote.sizes(folder)
    else:
        found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.parquet")}
    return {name: found[name] for name in sorted(found, key=lambda name: [_depth(part) for part in name.split("/")])}


def _depth(part: str) -> tuple[int, str]:
    return (int(part[6:]), "") if part.startswith("layer=") and part[6:].lstrip("-").isdigit() else (0, part)


def is_whole(path: Path) -> bool:
    """Whether a Parquet file was written to its end."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(-4, os.SEEK_END)
            return start == file.read(4) == b"PAR1" and path.stat().st_size >= 12
    except OSError:
        return False


def _dataset(directory: Place, table: str, without: frozenset[str] = frozenset()) -> ds.Dataset:
    folder = directory / f"tables/{table}"
    if isinstance(folder, Url):
        with remote.system_of(folder) as (system, root):
            files: fs.FileSystem = fs.PyFileSystem(fs.FSSpecHandler(system))
    else:
        files, root = _FILES, str(folder.resolve())
    names = list(_parts(directory, table))
    # One file at least, whatever is asked for, so that there is a schema to answer in.
    kept = [name for name in names if name.rpartition("/")[2] not in without] or names[:1]
    parts = [f"{root}/{name}" for name in kept]
    schema = pa.schema([(entry.name, TEXT if entry.type == NAME else entry.type) for entry in SCHEMAS[table]])
    keys = pa.schema([schema.field(name) for name in PARTITIONS.get(table, ())])
    checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=False)
    return ds.dataset(
        parts,
        schema=schema,
        filesystem=files,
        format=ds.ParquetFileFormat(default_fragment_scan_options=checked),
        partitioning=ds.partitioning(keys, flavor="hive") if keys.names else None,
        partition_base_dir=root,
    )


def _expression(table: str, where: Where) -> ds.Expression | None:
    if where is None or isinstance(where, ds.Expression):
        return where
    clauses = [clause for part in where for clause in (part if isinstance(part, list) else [part])]
    for clause in clauses:
        if not (isinstance(clause, tuple) and len(clause) == 3):
            raise RunError(f"{table}: a filter is a list of (column, operator, value), not {clause!r}")
    _known(table, [clause[0] for clause in clauses])
    try:
        return pq.filters_to_expression(list(where)) if clauses else None
    except (ValueError, pa.ArrowException) as error:
        raise RunError(f"{table}: the filter {list(where)!r} cannot be understood: {error}") from None


def _known(table: str, columns: Iterable[str]) -> None:
    if unknown := [name for name in columns if name not in SCHEMAS[table].names]:
        raise RunError(f"{table}: no column {', '.join(map(repr, unknown))}; there are {_names(table)}")


def _names(table: str) -> str:
    return ", ".join(SCHEMAS[table].names)
