"""A run directory: the writer that makes it whole or not at all, and the reader of its tables."""

from __future__ import annotations

import html
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from probes.errors import RunError
from probes.parquet import Columns, cast, write_part
from probes.parquet import write as write_parquet
from probes.schemas import NAME, PARTITIONS, SCHEMA_VERSION, SCHEMAS, TEXT
from tv.atomic import replacing

Where: TypeAlias = "ds.Expression | Sequence[Any] | None"

_FILES: fs.FileSystem = fs.LocalFileSystem()


class RunWriter:
    """Makes a run directory whole or not at all.

        with RunWriter("reports/demo") as writer:
            writer.write("changes", columns, shard="0000", tuned="medical", layer=3)
            run = writer.finish({"suite": suite.model_dump(mode="json")})
        load(writer.directory)

    The run is built beside its place, in `path` (`DIR.partial`), and renamed to `directory` when the context ends after
    `finish`; on an exception, or without `finish`, it is removed. Raises RunError at construction, before any work,
    where the directory cannot become a run: it holds something else, or another run and `force` is not set, or its
    parent cannot be written.
    """

    def __init__(self, directory: str | Path, *, force: bool = False) -> None:
        self.directory = Path(directory).resolve()
        self.tables: dict[str, dict[str, int]] = {}
        self._written: set[tuple[str, str, str | None, int | None]] = set()
        self._finished = False
        _refuse_occupied(self.directory, directory, force)
        self.path = self.directory.with_name(self.directory.name + ".partial")
        self._made = [parent for parent in self.path.parents if not parent.exists()]
        self._lock = _claim(self.path)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._finished and error is None:
                self._publish()
        finally:
            shutil.rmtree(self.path, ignore_errors=True)
            self._lock.close()
            for parent in self._made:  # of a run that did not come to be; others are not empty
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()

    def write(
        self, table: str, columns: Columns, *, shard: str, tuned: str | None = None, layer: int | None = None
    ) -> None:
        """Write one shard of a table (see `probes.parquet.write_part`) and count it."""
        place = (table, shard, tuned, layer)
        if place in self._written:
            raise ValueError(f"{table}: shard {shard} is already written")
        rows = write_part(self.path, table, columns, shard=shard, tuned=tuned, layer=layer)
        self._written.add(place)
        self.record({table: {"rows": rows, "files": 1}})

    def record(self, written: Mapping[str, Mapping[str, int]]) -> None:
        """Count what a shard wrote below `path` by itself: rows and files by table."""
        for table, own in written.items():
            counts = self.tables.setdefault(table, {"rows": 0, "files": 0})
            for name in counts:
                counts[name] += own[name]

    def finish(self, manifest: Mapping[str, Any]) -> Run:
        """Write the manifest and open the run where it is being built, for whatever is still to be added to it."""
        _write_manifest(self.path, {**manifest, "schema_version": SCHEMA_VERSION, "tables": self.tables})
        self._finished = True
        return load(self.path)

    def _publish(self) -> None:
        old = self.path / ".replaced"
        try:
            if (self.directory / _MANIFEST).exists():
                os.replace(self.directory, old)
            (self.path / _LOCK).unlink()
            os.replace(self.path, self.directory)
        except OSError as error:
            if old.exists():
                os.replace(old, self.directory)
            raise RunError(f"{self.directory}: the run cannot be put in place: {error.strerror}") from error
        shutil.rmtree(self.directory / old.name, ignore_errors=True)


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: `run["changes"]` is a table as a DataFrame, `run.df` a part of one."""

    path: Path
    manifest: dict[str, Any] = field(hash=False)

    @property
    def tables(self) -> list[str]:
        """The names of the tables that the run has."""
        return list(self.manifest["tables"])

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.df(table)

    def df(self, table: str, columns: Sequence[str] | None = None, where: Where = None) -> pd.DataFrame:
        """A table's columns (default all, in the schema's order), for the rows that pass `where`.

        `where` is a list of (column, operator, value), all of which must hold, e.g. [("layer", "==", 3)], or a
        pyarrow.dataset expression. Only these columns, and the row groups that can hold such rows, are read from disk.
        Names are `str`, not categories; gate patterns are bytes. Raises RunError for an unknown table or column.
        """
        return self.arrow(table, columns, where).to_pandas()

    def arrow(self, table: str, columns: Sequence[str] | None = None, where: Where = None) -> pa.Table:
        """The same as an Arrow table."""
        if table not in self.manifest["tables"]:
            raise RunError(f"{self.path}: no table {table!r}; there are {', '.join(self.tables)}")
        expression = _expression(table, where)
        names = [name for name in SCHEMAS[table].names if columns is None or name in columns]
        _known(table, columns or ())
        try:
            return _dataset(self.path, table).to_table(columns=names, filter=expression)
        except (pa.ArrowException, OSError) as error:
            problem = str(error).split("\n")[0]
            if "FieldRef" in problem:
                raise RunError(f"{table}: the filter names an unknown column; there are {_names(table)}") from None
            raise RunError(f"{self.path}: table {table} cannot be read: {problem}; make the run again") from error

    def add(self, table: str, columns: Columns) -> None:
        """Add a table without partitions to the run, or replace it. Raises ValueError for wrong columns."""
        if table in PARTITIONS:
            raise ValueError(f"{table} is partitioned; only a RunWriter writes it")
        body = cast(table, columns, {}, ())
        folder = self.path / "tables" / table
        write_parquet(table, body, folder / "part-0.parquet")
        for path in folder.glob("*.parquet"):
            if path.name != "part-0.parquet":
                path.unlink()
        self.manifest["tables"][table] = {"rows": body.num_rows, "files": 1}
        _write_manifest(self.path, self.manifest)

    def _sizes(self) -> list[tuple[str, str, str]]:
        return [
            (name, f"{counts['rows']:,}", _bytes(sum(path.stat().st_size for path in _parts(self.path, name))))
            for name, counts in self.manifest["tables"].items()
        ]

    def __repr__(self) -> str:
        lines = [f"  {name:<15}{rows:>14} rows{size:>10}" for name, rows, size in self._sizes()]
        return "\n".join([f"Run {str(self.path)!r} (suite {_suite_name(self.manifest)})", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in self._sizes())
        title = html.escape(f"{self.path} (suite {_suite_name(self.manifest)})")
        return f"<table><caption>{title}</caption><tr><th>table</th><th>rows</th><th>size</th></tr>{rows}</table>"


def load(path: str | Path) -> Run:
    """Open a finished run. Raises RunError where it is none, is newer than this program, or lacks or broke a file."""
    directory = Path(path)
    manifest = _manifest(directory)
    if manifest is None:
        raise RunError(f"{path}: not a run directory (no readable {_MANIFEST}); pass what `probes run --out` wrote")
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise RunError(
            f"{path}: written in schema version {manifest['schema_version']}, and this program reads up to "
            f"{SCHEMA_VERSION}; update it"
        )
    for table, counts in manifest["tables"].items():
        if table not in SCHEMAS:
            raise RunError(f"{path}: unknown table {table!r} in {_MANIFEST}; it is not a run of this program")
        parts = _parts(directory, table)
        if len(parts) != counts["files"]:
            raise RunError(
                f"{path}: table {table} has {len(parts)} of its {counts['files']} files; "
                "the run is damaged, make it again"
            )
        for part in parts:
            if not _is_whole(part):
                raise RunError(f"{part}: not a whole Parquet file; the run is damaged, make it again")
    return Run(directory, manifest)


_MANIFEST, _LOCK = "manifest.json", ".lock"


def _refuse_occupied(directory: Path, shown: str | Path, force: bool) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise RunError(f"{shown} is a file; choose another --out")
    manifest = _manifest(directory)
    if manifest is None and any(directory.iterdir()):
        raise RunError(f"{shown} is not empty and holds no run; choose another --out")
    if manifest is not None and not force:
        raise RunError(
            f"{shown} holds another run (suite {_suite_name(manifest)}); choose another --out or pass --force"
        )


def _claim(partial: Path) -> IO[str]:
    """Make an empty `partial` and hold its lock. What a killed writer left is removed; a live one is respected."""
    try:
        if partial.exists():
            if any(partial.iterdir()) and not (partial / _LOCK).exists():
                raise RunError(f"{partial} is in the way and is not ours; move it or choose another --out")
            if (partial / _LOCK).exists():
                with open(partial / _LOCK, "a", encoding="utf-8") as left:
                    if not _try_lock(left):
                        raise RunError(f"{partial}: another process is writing this run; wait or choose another --out")
                    shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        lock = open(partial / _LOCK, "a", encoding="utf-8")  # noqa: SIM115 (held until the run is finished)
    except OSError as error:
        raise RunError(f"{partial.parent} cannot be written: {error.strerror}; choose another --out") from None
    if not _try_lock(lock):
        lock.close()
        raise RunError(f"{partial}: another process is writing this run; wait or choose another --out")
    return lock


def _try_lock(handle: IO[str]) -> bool:
    """Whether this process now holds the file's lock; the system releases it when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    with replacing(directory / _MANIFEST, RunError) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def _manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a run of ours, else None."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema_version"), int):
        return None
    tables = manifest.get("tables")
    ours = isinstance(tables, dict) and all(
        isinstance(t, dict) and {"rows", "files"} <= set(t) for t in tables.values()
    )
    return manifest if ours else None


def _suite_name(manifest: Mapping[str, Any]) -> str:
    suite = manifest.get("suite")
    return str(suite.get("name", "unnamed") if isinstance(suite, dict) else suite or "unnamed")


def _parts(directory: Path, table: str) -> list[Path]:
    """A table's files, by tuned model, layer and shard."""
    folder = directory / "tables" / table
    return sorted(folder.rglob("*.parquet"), key=lambda path: [_depth(part) for part in path.relative_to(folder).parts])


def _depth(part: str) -> tuple[int, str]:
    return (int(part[6:]), "") if part.startswith("layer=") and part[6:].lstrip("-").isdigit() else (0, part)


def _is_whole(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            file.seek(-4, os.SEEK_END)
            return start == file.read(4) == b"PAR1" and path.stat().st_size >= 12
    except OSError:
        return False


def _dataset(directory: Path, table: str) -> ds.Dataset:
    root = str((directory / "tables" / table).resolve())
    parts = [str(part.resolve()) for part in _parts(directory, table)]
    schema = pa.schema([(entry.name, TEXT if entry.type == NAME else entry.type) for entry in SCHEMAS[table]])
    keys = pa.schema([schema.field(name) for name in PARTITIONS.get(table, ())])
    checked = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    return ds.dataset(
        parts,
        schema=schema,
        filesystem=_FILES,
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


def _bytes(size: int) -> str:
    power = next(i for i in (0, 1, 2, 3) if size < 1000 ** (i + 1) or i == 3)
    return f"{size / 1000**power:.{min(power, 1)}f} {('B', 'KB', 'MB', 'GB')[power]}"
