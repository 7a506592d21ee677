"""A finished run, and the tables that are read from it."""

from __future__ import annotations

import html
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from probes.errors import RunError
from probes.store import remote
from probes.store.digests import FILES, file_digest
from probes.store.manifest import MANIFEST, read_manifest, require_form, suite_name, write_manifest
from probes.store.parquet import Columns, cast, write as write_parquet
from probes.store.query import query
from probes.store.remote import Place, Url, place_of
from probes.store.schemas import OLDEST_VERSION, PARTITIONS, SCHEMA_VERSION, SCHEMAS
from probes.store.table import Table, Where, parts, size_text
from probes.store.verdict import VERDICT, Verdict, read_verdict
from tv.errors import choices

_FIRST = "part-0.parquet"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: `run["changes"]` is a table as a DataFrame, `run.df` a part of one.

    `probes.run` and `probes.load` give one.

    Attributes:
        path: Its directory, or its URL.
        manifest: What it was made of: the suite, checkpoints, versions, and every table's rows and files.
        notes: What a reader should know: of the models and of how they read the prompts, and columns that an older
            program did not write.

    Examples:
        >>> run = probes.load("reports/demo")
        >>> run.df("gates", columns=["tuned", "layer", "flip_rate"], where=[("layer", "==", 3)]).layer.unique().tolist()
        [3]
        >>> len(run["prompts"]) == run.manifest["n_prompts"]
        True
    """

    path: Place
    manifest: dict[str, Any] = field(hash=False)
    notes: tuple[str, ...] = ()  # what a reader should know

    @property
    def tables(self) -> list[str]:
        """The names of the tables that the run has."""
        return list(self.manifest["tables"])

    @property
    def verdict(self) -> dict[str, Verdict]:
        """What fine-tuning did, in short: the verdict on every tuned model, by its name.

        Raises:
            RunError: The run has none, because its report was not written since its tables were.
        """
        return read_verdict(self.path)

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.df(table)

    def table(self, name: str) -> Table:
        """A handle on a table, which reads nothing until it is asked.

        Args:
            name: One of `tables`.

        Returns:
            The handle.

        Raises:
            RunError: The run has no such table.
        """
        if name not in self.manifest["tables"]:
            raise RunError(f"{self.path}: no table {name!r}{choices(name, self.tables)}")
        rows = int(self.manifest["tables"][name]["rows"])
        older = self.manifest["schema_version"] < SCHEMA_VERSION
        return Table(self.path, name, rows, self.manifest.get("shards", {}), older)

    def size(self, table: str) -> int:
        """Bytes of a table's files."""
        return self.table(table).size

    def df(self, table: str, columns: Sequence[str] | None = None, where: Where = None) -> pd.DataFrame:
        """A part of a table as a pandas DataFrame; only that part is read.

        Args:
            table: One of `tables`.
            columns: The columns, all without it; they come in the table's order.
            where: A list of (column, operator, value), all of which must hold, such as [("layer", "==", 3)], or a
                pyarrow.dataset expression.

        Returns:
            The rows that pass `where`.

        Raises:
            RunError: An unknown table or column, a filter that cannot be understood, or a table that cannot be read.
        """
        return self.table(table).df(columns, where)

    def arrow(self, table: str, columns: Sequence[str] | None = None, where: Where = None) -> pa.Table:
        """The same as an Arrow table."""
        return self.table(table).arrow(columns, where)

    def polars(self, table: str, columns: Sequence[str] | None = None, where: Where = None) -> Any:
        """The same as a polars DataFrame. Raises RunError where polars is not installed."""
        return self.table(table).polars(columns, where)

    def sql(self, statement: str) -> pd.DataFrame:
        """Ask one SELECT over the run's tables, in DuckDB's dialect.

        run.sql("SELECT domain, avg(flip_rate) FROM gates JOIN prompts USING (prompt_id) GROUP BY domain")

        Args:
            statement: The query. It can read the run's tables and nothing else.

        Returns:
            The answer as a DataFrame.

        Raises:
            RunError: In one line: no such statement, a table that is not there, something outside the tables, or more
                than 4 GB of memory needed.
        """
        return self.sql_arrow(statement).to_pandas()

    def sql_arrow(self, statement: str) -> pa.Table:
        """The same as an Arrow table."""
        return query({name: self.table(name).dataset for name in self.tables}, statement)

    def vectors(
        self, site: str, layer: int, *, tuned: str | None = None, model: str = "tuned", where: Where = None
    ) -> tuple[pd.DataFrame, NDArray[np.float16]]:
        """The vectors that the suite kept of a site.

        Args:
            site: One of the suite's `keep`, such as "resid_post".
            layer: From 0.
            tuned: Which tuned model's pair, where there are several.
            model: "base" or "tuned".
            where: Which places, as in `df`: [("prompt_id", "==", "medical-000")].

        Returns:
            Their places (`prompt_id pos`), and an array (places, width) of float16: a read-only view of what Arrow
            read.

        Raises:
            RunError: The run kept no such vectors, or has several pairs and `tuned` names none.
        """
        if model not in ("base", "tuned"):
            raise RunError(f"model {model!r}: base or tuned")
        column = f"vector_{model}"
        names = list(self.manifest["suite"]["tuned"])
        if tuned is None and len(names) > 1:
            raise RunError(f"vectors of which pair? tuned is one of {', '.join(names)}")
        keys = [("site", "==", site), ("layer", "==", layer), ("tuned", "==", tuned or names[0])]
        table = self.table("vectors")
        whole, part = table.expression(keys), table.expression(where)
        rows = table.arrow(["prompt_id", "pos", column], whole if part is None else whole & part)
        if not rows.num_rows:
            raise RunError(f"{self.path}: no vectors of {site} in layer {layer}; add it to `keep` in the suite")
        values = rows[column].combine_chunks()
        starts = np.frombuffer(values.buffers()[1], np.int32, len(values) + 1, 4 * values.offset)
        flat = np.frombuffer(values.buffers()[2], np.float16, (starts[-1] - starts[0]) // 2, starts[0])
        return rows.drop_columns([column]).to_pandas(), flat.reshape(len(values), -1)

    def add(self, table: str, columns: Columns) -> None:
        """Add a table without partitions to the run, or replace it.

        Args:
            table: The name of a table that the program knows.
            columns: Its rows, as a DataFrame or columns by name.

        Raises:
            RunError: No table of that name is declared, or it has partitions, which `probes.run` alone writes.
            ValueError: Wrong columns.
        """
        if table not in SCHEMAS:
            raise RunError(f"table {table!r}: there is no such table; declare it beside the measure that makes it")
        if table in PARTITIONS:
            raise RunError(f"table {table!r}: it is split into directories, which probes.run alone writes")
        body = cast(table, columns, {}, ())
        self._forget_verdict()
        self.manifest["tables"][table] = {"rows": body.num_rows, "files": 1}
        if isinstance(self.path, Url):
            with tempfile.TemporaryDirectory() as here:
                write_parquet(table, body, Path(here) / _FIRST)
                self._list(table, Path(here) / _FIRST)
                remote.upload(Path(here), self.path / f"tables/{table}")
                write_manifest(Path(here), self.manifest)
                others = [name for name in parts(self.path, table) if name != _FIRST]
                remote.remove(self.path / f"tables/{table}", others)
                remote.upload(Path(here), self.path, [MANIFEST])
            return
        folder = self.path / "tables" / table
        write_parquet(table, body, folder / _FIRST)
        for path in folder.glob("*.parquet"):
            if path.name != _FIRST:
                path.unlink()
        self._list(table, folder / _FIRST)
        write_manifest(self.path, self.manifest)

    def drop(self, table: str) -> None:
        """Remove a table from the run, if it is there.

        Args:
            table: The table's name.
        """
        if self.manifest["tables"].pop(table, None) is None:
            return
        self._forget_verdict()
        self._list(table, None)
        if isinstance(self.path, Url):
            with tempfile.TemporaryDirectory() as here:
                write_manifest(Path(here), self.manifest)
                remote.upload(Path(here), self.path, [MANIFEST])
                remote.remove(self.path / f"tables/{table}")
            return
        write_manifest(self.path, self.manifest)
        shutil.rmtree(self.path / "tables" / table, ignore_errors=True)

    def view(self, **options: Any) -> Any:
        """Both models of the run, live in a notebook: `probes.view` of this run, with the same options."""
        import probes

        return probes.view(self, **options)

    def _forget_verdict(self) -> None:
        """Remove the verdict: it is of tables that change now."""
        self.manifest.get(FILES, {}).pop(VERDICT, None)
        if isinstance(self.path, Url):
            remote.remove(self.path, [VERDICT])
        else:
            (self.path / VERDICT).unlink(missing_ok=True)

    def _list(self, table: str, path: Path | None) -> None:
        """List a table's only file, or none, in the manifest; the manifest of an older run lists no files."""
        listed = self.manifest.get(FILES)
        if listed is not None:
            folder = f"tables/{table}/"
            kept = {name: digest for name, digest in listed.items() if not name.startswith(folder)}
            self.manifest[FILES] = kept | ({} if path is None else {f"{folder}{_FIRST}": file_digest(path)})

    def _shown(self) -> list[tuple[str, str, str, str]]:
        """Name, rows, columns and size of every table."""
        tables = map(self.table, self.tables)
        return [(table.name, f"{len(table):,}", str(len(table.columns)), size_text(table.size)) for table in tables]

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
    """Open a finished run.

    A column newer than the version that wrote the run reads as null: the run's `notes` name these, and a line on stderr
    says so.

    Args:
        path: A directory's path or a URL (s3://bucket/run).

    Returns:
        The run, none of its tables read yet.

    Raises:
        RunError: There is no run, it is newer than this program or too old for it, or a file is missing or broken.

    Examples:
        >>> list(probes.load("reports/demo").manifest["suite"]["tuned"])
        ['medical', 'math']
    """
    directory = place_of(path)
    manifest = read_manifest(directory)
    if manifest is None:
        raise RunError(f"{path}: not a run directory (no readable {MANIFEST}); pass what `probes run --out` wrote")
    written = manifest["schema_version"]
    if not OLDEST_VERSION <= written <= SCHEMA_VERSION:
        advice = (
            "update it" if written > SCHEMA_VERSION else "make the run again, or read its Parquet files by themselves"
        )
        reads = " to ".join(map(str, dict.fromkeys((OLDEST_VERSION, SCHEMA_VERSION))))
        raise RunError(f"{path}: its tables have schema version {written}, and this program reads {reads}; {advice}")
    require_form(directory, manifest)
    for table, counts in manifest["tables"].items():
        if table not in SCHEMAS:
            raise RunError(
                f"{path}: unknown table {table!r} in {MANIFEST}; it is not a run of this program, or the "
                "package that adds this table is not installed"
            )
        files = parts(directory, table)
        if len(files) != counts["files"]:
            raise RunError(
                f"{path}: table {table} has {len(files)} of its {counts['files']} files; "
                "the run is damaged, make it again"
            )
        if isinstance(directory, Path):  # at a URL a file is whole or absent
            for part in (directory / "tables" / table / name for name in files):
                if not is_whole(part):
                    raise RunError(f"{part}: not a whole Parquet file; the run is damaged, make it again")
    older = _of_columns(Run(directory, manifest)) if written < SCHEMA_VERSION else ()
    for note in older:
        _LOG.warning("%s: %s", path, note)
    return Run(directory, manifest, (*_told(manifest), *older))


def _told(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the run told as it was made: a note that holds for every tuned model once, others with the model's name."""
    by_name: dict[str, list[str]] = manifest.get("notes", {})
    for name, notes in by_name.items():
        for note in notes:
            if not all(note in others for others in by_name.values()):
                yield f"{name}: {note}"
            elif name == next(iter(by_name)):
                yield note


def _of_columns(run: Run) -> tuple[str, ...]:
    """The columns that no file of an older run has, in one line."""
    lacking = [f"{name}.{column}" for name in run.tables for column in run.table(name).lacking]
    version = run.manifest["schema_version"]
    return (f"written with schema version {version}: null in it: {', '.join(lacking)}",) if lacking else ()


def is_whole(path: Path) -> bool:
    """Whether a Parquet file was written to its end."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(-4, os.SEEK_END)
            return start == file.read(4) == b"PAR1" and path.stat().st_size >= 12
    except OSError:
        return False
