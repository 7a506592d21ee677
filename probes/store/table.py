"""One table of a run as a handle: what it holds is known at once, and read when it is asked for."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from probes.errors import RunError
from probes.store import remote
from probes.store.query import query
from probes.store.remote import Place, Url
from probes.store.schemas import NAME, PARTITIONS, SCHEMAS, TEXT

Where: TypeAlias = "ds.Expression | Sequence[Any] | None"

_FILES: fs.FileSystem = fs.LocalFileSystem()


@dataclass(frozen=True, repr=False)
class Table:
    """A table of a run, as `run.table` gives it: `len(table)` is its rows, and showing it reads none of them."""

    path: Place  # the run's
    name: str
    rows: int
    shards: Mapping[str, Sequence[str]] = field(default_factory=dict)  # the prompts of each shard

    def __len__(self) -> int:
        return self.rows

    @property
    def columns(self) -> dict[str, str]:
        """The type of every column by its name, as Arrow calls it."""
        kinds = {entry.name: entry.type for entry in SCHEMAS[self.name]}
        return {name: str(kind.value_type if pa.types.is_dictionary(kind) else kind) for name, kind in kinds.items()}

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(parts(self.path, self.name).values())

    def df(self, columns: Sequence[str] | None = None, where: Where = None) -> pd.DataFrame:
        """Its columns (default all, in the schema's order), for the rows that pass `where`, as a pandas DataFrame.

        `where` is a list of (column, operator, value), all of which must hold, e.g. [("layer", "==", 3)], or a
        pyarrow.dataset expression. Only these columns, and the row groups that can hold such rows, are read from disk.
        Names are `str`, not categories; gate patterns are bytes. Raises RunError for an unknown column.
        """
        return self.arrow(columns, where).to_pandas()

    def arrow(self, columns: Sequence[str] | None = None, where: Where = None) -> pa.Table:
        """The same as an Arrow table."""
        expression = expression_of(self.name, where)
        names = [name for name in SCHEMAS[self.name].names if columns is None or name in columns]
        _known(self.name, columns or ())
        try:
            return self.dataset(self._without(where)).to_table(columns=names, filter=expression)
        except (pa.ArrowException, OSError) as error:
            problem = str(error).split("\n")[0]
            if "FieldRef" in problem:
                raise RunError(
                    f"{self.name}: the filter names an unknown column; there are {_names(self.name)}"
                ) from None
            raise RunError(f"{self.path}: table {self.name} cannot be read: {problem}; make the run again") from error

    def polars(self, columns: Sequence[str] | None = None, where: Where = None) -> Any:
        """The same as a polars DataFrame. Raises RunError where polars is not installed."""
        try:
            import polars
        except ImportError:
            raise RunError("polars is not installed: pip install polars, or use .df or .arrow") from None
        return polars.from_arrow(self.arrow(columns, where))

    def sql(self, statement: str) -> pd.DataFrame:
        """The answer to one SELECT over this table alone, else RunError; `Run.sql` joins several."""
        return query({self.name: self.dataset}, statement).to_pandas()

    def dataset(self, without: frozenset[str] = frozenset()) -> ds.Dataset:
        """Its files as an Arrow dataset, but for those `without`; a column that an older file lacks is null."""
        folder = self.path / f"tables/{self.name}"
        if isinstance(folder, Url):
            with remote.system_of(folder) as (system, root):
                files: fs.FileSystem = fs.PyFileSystem(fs.FSSpecHandler(system))
        else:
            files, root = _FILES, str(folder.resolve())
        names = list(parts(self.path, self.name))
        # One file at least, whatever is asked for, so that there is a schema to answer in.
        kept = [name for name in names if name.rpartition("/")[2] not in without] or names[:1]
        schema = pa.schema([(entry.name, TEXT if entry.type == NAME else entry.type) for entry in SCHEMAS[self.name]])
        keys = pa.schema([schema.field(name) for name in PARTITIONS.get(self.name, ())])
        checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=False)
        return ds.dataset(
            [f"{root}/{name}" for name in kept],
            schema=schema,
            filesystem=files,
            format=ds.ParquetFileFormat(default_fragment_scan_options=checked),
            partitioning=ds.partitioning(keys, flavor="hive") if keys.names else None,
            partition_base_dir=root,
        )

    def _without(self, where: Where) -> frozenset[str]:
        """Names of files that hold no row of the prompts that are asked for, by what the manifest says of shards."""
        wanted: set[str] | None = None
        for clause in where if isinstance(where, list) else ():
            if isinstance(clause, tuple) and len(clause) == 3 and clause[0] == "prompt_id" and clause[1] in ("==", "="):
                wanted = {clause[2]} if wanted is None else wanted & {clause[2]}
        if wanted is None:
            return frozenset()
        return frozenset(f"part-{name}.parquet" for name, own in self.shards.items() if wanted.isdisjoint(own))

    def __repr__(self) -> str:
        width = max(map(len, self.columns))
        return "\n".join([self._title, *(f"  {name:<{width}}  {kind}" for name, kind in self.columns.items())])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{name}</td><td>{kind}</td></tr>" for name, kind in self.columns.items())
        title = html.escape(self._title)
        return f"<table><caption>{title}</caption><tr><th>column</th><th>type</th></tr>{rows}</table>"

    @property
    def _title(self) -> str:
        return f"{self.name}: {len(self):,} rows, {len(self.columns)} columns, {size_text(self.size)}"


def size_text(size: int) -> str:
    """A number of bytes as people say it: 4.2 MB."""
    power = next(i for i in (0, 1, 2, 3) if size < 1000 ** (i + 1) or i == 3)
    return f"{size / 1000**power:.{min(power, 1)}f} {('B', 'KB', 'MB', 'GB')[power]}"


def parts(directory: Place, table: str) -> dict[str, int]:
    """Sizes of a table's files, by path below the table's directory; by tuned model, layer and shard."""
    folder = directory / f"tables/{table}"
    if isinstance(folder, Url):
        found = remote.sizes(folder)
    else:
        found = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.parquet")}
    return {name: found[name] for name in sorted(found, key=lambda name: [_depth(part) for part in name.split("/")])}


def _depth(part: str) -> tuple[int, str]:
    return (int(part[6:]), "") if part.startswith("layer=") and part[6:].lstrip("-").isdigit() else (0, part)


def expression_of(table: str, where: Where) -> ds.Expression | None:
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
