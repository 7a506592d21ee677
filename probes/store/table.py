"""One table of a run as a handle: its columns and size are known at once, its rows are read on request."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from probes.errors import RunError
from probes.store import remote
from probes.store.forms.declare import TABLES
from probes.store.query import query
from probes.store.remote import Place, Url
from probes.store.schemas import NAME, PARTITIONS, SCHEMAS, TEXT, WEIGHT_TABLES, schema_of
from tv.errors import choices, first_line

Where: TypeAlias = "ds.Expression | Sequence[Any] | None"

_FILES: fs.FileSystem = fs.LocalFileSystem()


@dataclass(frozen=True, repr=False)
class Table:
    """A table of a run, as `run.table` gives it: `len(table)` is its rows, and showing it reads none of them.

    Attributes:
        path: The run's directory or URL.
        name: The table's name.
        rows: How many rows it has.
        shards: The prompts of each shard.
        older: Whether an earlier schema version wrote it.

    Examples:
        >>> gates = probes.load("reports/demo").table("gates")
        >>> len(gates) > 0, gates.columns["flip_rate"]
        (True, 'float')
        >>> gates.df(["layer"], where=[("layer", "<", 2)]).layer.unique().tolist()
        [0, 1]
    """

    path: Place  # the run's
    name: str
    rows: int
    shards: Mapping[str, Sequence[str]] = field(default_factory=dict)  # the prompts of each shard
    older: bool = False  # whether an earlier schema version wrote it

    def __len__(self) -> int:
        return self.rows

    @property
    def columns(self) -> dict[str, str]:
        """The type of every column by its name, as Arrow calls it."""
        return {entry.name: str(entry.type) for entry in self.schema}

    @cached_property
    def schema(self) -> pa.Schema:
        """Its declared columns, taken from its files where the declaration would import the code that measures it."""
        if self.name in TABLES:
            declared = schema_of(TABLES[self.name])
        else:
            known = self.name in WEIGHT_TABLES and not self.older and self._stored.names
            declared = self._stored if known else SCHEMAS[self.name]
        return pa.schema([(entry.name, TEXT if entry.type == NAME else entry.type) for entry in declared])

    @cached_property
    def _stored(self) -> pa.Schema:
        """The columns of its first file; none where it has no file."""
        files, root, names = self._files()
        if not names:
            return pa.schema([])
        try:
            return pq.read_schema(f"{root}/{names[0]}", filesystem=files)
        except (pa.ArrowException, OSError) as error:
            raise RunError(
                f"{self.path}: table {self.name} cannot be read: {first_line(error)}; make the run again"
            ) from error

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(parts(self.path, self.name).values())

    @property
    def lacking(self) -> list[str]:
        """The columns that its files do not have, because an older program wrote them: they read as null."""
        known = {*PARTITIONS.get(self.name, ()), *self._stored.names}
        return [name for name in self.schema.names if name not in known] if self._stored.names else []

    def df(self, columns: Sequence[str] | None = None, where: Where = None) -> pd.DataFrame:
        """Its rows as a pandas DataFrame; names are `str`, not categories, and gate patterns are bytes.

        Only the columns asked for, and the row groups that can hold such rows, are read from disk.

        Args:
            columns: The columns, all without it; they come in the schema's order.
            where: A list of (column, operator, value), all of which must hold, such as [("layer", "==", 3)], or a
                pyarrow.dataset expression.

        Returns:
            The rows that pass `where`.

        Raises:
            RunError: An unknown column, a filter that cannot be understood, or a table that cannot be read.
        """
        return self.arrow(columns, where).to_pandas()

    def arrow(self, columns: Sequence[str] | None = None, where: Where = None) -> pa.Table:
        """The same as an Arrow table."""
        expression = self.expression(where)
        names = [name for name in self.schema.names if columns is None or name in columns]
        self._require(columns or ())
        try:
            return self.dataset(self._without(where)).to_table(columns=names, filter=expression)
        except (pa.ArrowException, OSError) as error:
            problem = str(error).split("\n")[0]
            if "FieldRef" in problem:
                named = re.search(r"FieldRef\.Name\((.*?)\)", problem)
                self._require([named[1] if named else problem])
            raise RunError(f"{self.path}: table {self.name} cannot be read: {problem}; make the run again") from error

    def polars(self, columns: Sequence[str] | None = None, where: Where = None) -> Any:
        """The same as a polars DataFrame. Raises RunError where polars is not installed."""
        try:
            import polars
        except ImportError:
            raise RunError("polars is not installed: pip install polars, or use .df or .arrow") from None
        return polars.from_arrow(self.arrow(columns, where))

    def sql(self, statement: str) -> pd.DataFrame:
        """Ask one SELECT over this table alone; `Run.sql` joins several.

        Args:
            statement: The query, in DuckDB's dialect.

        Returns:
            The answer as a DataFrame.

        Raises:
            RunError: The statement cannot be answered, or names another table.
        """
        try:
            return query({self.name: self.dataset}, statement).to_pandas()
        except RunError as error:
            if isinstance(error.__cause__, LookupError):
                raise RunError(
                    f"{self.name}: a table's sql reads {self.name} alone; ask run.sql, which reads every table"
                ) from error
            raise

    def dataset(self, without: frozenset[str] = frozenset()) -> ds.Dataset:
        """Its files as an Arrow dataset, except those in `without`; a column that an older file lacks is null."""
        files, root, names = self._files()
        # At least one file, so that an empty answer has a schema.
        kept = [name for name in names if name.rpartition("/")[2] not in without] or names[:1]
        keys = pa.schema([self.schema.field(name) for name in PARTITIONS.get(self.name, ())])
        checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=False)
        return ds.dataset(
            [f"{root}/{name}" for name in kept],
            schema=self.schema,
            filesystem=files,
            format=ds.ParquetFileFormat(default_fragment_scan_options=checked),
            partitioning=ds.partitioning(keys, flavor="hive") if keys.names else None,
            partition_base_dir=root,
        )

    def expression(self, where: Where) -> ds.Expression | None:
        """A filter as Arrow takes it. Raises RunError for one that cannot be understood, or an unknown column."""
        if where is None or isinstance(where, ds.Expression):
            return where
        clauses = [clause for part in where for clause in (part if isinstance(part, list) else [part])]
        for clause in clauses:
            if not (isinstance(clause, tuple) and len(clause) == 3):
                raise RunError(f"{self.name}: a filter is a list of (column, operator, value), not {clause!r}")
        self._require([clause[0] for clause in clauses])
        try:
            return pq.filters_to_expression(list(where)) if clauses else None
        except (ValueError, pa.ArrowException) as error:
            raise RunError(f"{self.name}: the filter {list(where)!r} cannot be understood: {error}") from None

    def _require(self, columns: Iterable[str]) -> None:
        for name in columns:
            if name not in self.schema.names:
                raise RunError(f"{self.name}: no column {name!r}{choices(name, self.schema.names)}")

    def _files(self) -> tuple[fs.FileSystem, str, list[str]]:
        """(file system, the table's folder there, its files below it)."""
        folder = self.path / f"tables/{self.name}"
        names = list(parts(self.path, self.name))
        if isinstance(folder, Url):
            with remote.system_of(folder) as (system, root):
                return fs.PyFileSystem(fs.FSSpecHandler(system)), root, names
        return _FILES, str(folder.resolve()), names

    def _without(self, where: Where) -> frozenset[str]:
        """Names of files that hold no row of the prompts asked for, according to the manifest's shards."""
        wanted: set[str] | None = None
        for clause in where if isinstance(where, list) else ():
            if isinstance(clause, tuple) and len(clause) == 3 and clause[0] == "prompt_id" and clause[1] in ("==", "="):
                wanted = {clause[2]} if wanted is None else wanted & {clause[2]}
        if wanted is None:
            return frozenset()
        return frozenset(f"part-{name}.parquet" for name, prompts in self.shards.items() if wanted.isdisjoint(prompts))

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
    """A number of bytes for people: 4.2 MB."""
    power = next(i for i in (0, 1, 2, 3) if size < 1000 ** (i + 1) or i == 3)
    return f"{size / 1000**power:.{min(power, 1)}f} {('B', 'KB', 'MB', 'GB')[power]}"


def parts(directory: Place, table: str) -> dict[str, int]:
    """Sizes of a table's files, by path below the table's directory; by tuned model, layer and shard."""
    folder = directory / f"tables/{table}"
    if isinstance(folder, Url):
        sizes = remote.sizes(folder)
    else:
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.parquet")}
    return {name: sizes[name] for name in sorted(sizes, key=lambda name: [_depth(part) for part in name.split("/")])}


def _depth(part: str) -> tuple[int, str]:
    return (int(part[6:]), "") if part.startswith("layer=") and part[6:].lstrip("-").isdigit() else (0, part)
