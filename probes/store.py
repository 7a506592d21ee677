"""A run directory: the writer that makes it whole or not at all, and the reader of its tables."""

from __future__ import annotations

import html
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from probes import remote
from probes.errors import RunError
from probes.journal import Journal, Row
from probes.neurons import SHARES, summed
from probes.parquet import Columns, cast, write_part
from probes.parquet import write as write_parquet
from probes.remote import Place, Url, place_of, staging
from probes.schemas import NAME, PARTITIONS, SCHEMA_VERSION, SCHEMAS, TEXT
from tv.atomic import replacing
from tv.errors import InputError

Where: TypeAlias = "ds.Expression | Sequence[Any] | None"

_FILES: fs.FileSystem = fs.LocalFileSystem()
_FIRST = "part-0.parquet"


class RunWriter:
    """Makes a run directory whole or not at all.

        with RunWriter("reports/demo") as writer:
            writer.begin({"suite": suite.model_dump(mode="json")})
            writer.stage("weights", "00000", lambda: {"weights": weights, "alignment": alignment})
            run = writer.finish({"suite": suite.model_dump(mode="json")})
        load(writer.directory)

    The run is built beside its place, in `path` (`DIR.partial`), and renamed to `directory` when the context ends after
    `finish`; for a URL (s3://bucket/run) it is built in a temporary directory and uploaded, its manifest last. What a
    killed or interrupted process leaves there is gone on with by the next one that begins the same run (see `begin`);
    bad input leaves nothing of a new run, and what was there of one that is gone on with. Raises RunError at
    construction, before any work, where the directory cannot become a run: it holds something else, or another run and
    `force` is not set, or its parent cannot be written.
    """

    def __init__(self, directory: str | Path, *, force: bool = False) -> None:
        place = place_of(directory)
        self.directory = place.resolve() if isinstance(place, Path) else place
        self.force = force
        self.tables: dict[str, dict[str, int]] = {}
        self._written: set[tuple[str, str, str | None, int | None, str | None]] = set()
        self._finished = self._published = False
        _refuse_occupied(self.directory, directory, force)
        built = staging(self.directory) if isinstance(self.directory, Url) else self.directory
        self.path = built.with_name(built.name + ".partial")
        #: Where workers on machines that do not have `path` put their files; None where all have it.
        self.via = Url(f"{self.directory.rstrip('/')}.partial") if isinstance(self.directory, Url) else None
        if self.via is not None:
            remote.require_writable(self.via)
        self._made = [parent for parent in self.path.parents if not parent.exists()]
        self._lock = _claim(self.path, self.directory)
        _refuse_occupied(self.directory, directory, force)  # again: what a killed one had moved is back
        self._journal = Journal(self.path / _JOURNAL)
        self._resumed = bool(self._journal.rows)
        self._left = _files_by_name(self.path)

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._finished and error is None:
                self._publish()
        except BaseException as failure:
            error = failure
            raise
        finally:
            if not self._published and not self._worth_keeping(error):
                shutil.rmtree(self.path, ignore_errors=True)
            self._lock.close()
            for parent in self._made:  # of a run that did not come to be; others are not empty
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Say which run this is: whatever its rows depend on, as JSON.

        What a killed process left of the same run counts as done. Raises RunError, saying what changed, where it was
        another run that was killed; with `force` that one is removed instead.
        """
        change = self._journal.change(identity)
        if change is not None and not self.force:
            raise RunError(
                f"{self.path.name} holds an unfinished run, and {change}; change it back to go on with that run, "
                "or pass --force to start anew"
            )
        if change is not None or self._journal.identity is None:
            _clear(self.path)
            if self.via is not None:
                remote.remove(self.via)
            self._resumed, self._left = False, {}
            self._journal.begin(identity)

    def has(self, stage: str, shard: str) -> bool:
        """Whether a killed process had finished this, and its files are there. They are counted then."""
        row = self._journal.rows.get((stage, shard))
        if row is None:
            return False
        for table, counts in row["tables"].items():
            parts = self._left.get((table, f"part-{shard}.parquet"), [])
            if len(parts) != counts["files"] or not all(map(_is_whole, parts)):
                return False
        self.record(row["tables"])
        return True

    def complete(self, stage: str, row: Row) -> None:
        """Note and count a piece of a stage whose files are on disk: `row` names its shard, rows and files by table."""
        self._journal.append(stage, row)
        self.record(row["tables"])

    def stage(self, stage: str, shard: str, make: Callable[[], Mapping[str, Columns]]) -> None:
        """Write the tables that `make` returns, each as one file. What a killed process had finished is not made."""
        if self.has(stage, shard):
            return
        counts = {
            table: {"rows": write_part(self.path, table, columns, shard=shard), "files": 1}
            for table, columns in make().items()
        }
        self.complete(stage, {"shard": shard, "tables": counts})

    def write(
        self,
        table: str,
        columns: Columns,
        *,
        shard: str,
        tuned: str | None = None,
        layer: int | None = None,
        site: str | None = None,
    ) -> None:
        """Write one shard of a table (see `probes.parquet.write_part`) and count it."""
        place = (table, shard, tuned, layer, site)
        if place in self._written:
            raise ValueError(f"{table}: shard {shard} is already written")
        rows = write_part(self.path, table, columns, shard=shard, tuned=tuned, layer=layer, site=site)
        self._written.add(place)
        self.record({table: {"rows": rows, "files": 1}})

    def record(self, written: Mapping[str, Mapping[str, int]]) -> None:
        """Count what a shard wrote below `path` by itself: rows and files by table."""
        for table, own in written.items():
            counts = self.tables.setdefault(table, {"rows": 0, "files": 0})
            for name in counts:
                counts[name] += own[name]

    def so_far(self, manifest: Mapping[str, Any]) -> Run:
        """What is written, as a run that can be read, before it is finished."""
        return Run(self.path, {**manifest, "schema_version": SCHEMA_VERSION, "tables": dict(self.tables)})

    def finish(self, manifest: Mapping[str, Any]) -> Run:
        """Sum what the shards counted, write the manifest, and open the run where it is being built.

        Whatever is still to be added to it can be added there.
        """
        if (neurons := summed(self.path)) is not None:
            self.tables.pop("neurons", None)
            self.write("neurons", neurons, shard="00000")
        for cut_short in (self.path / "tables").rglob("*.tmp"):
            cut_short.unlink()
        tables = {table: self.tables[table] for table in SCHEMAS if table in self.tables}
        _write_manifest(self.path, {**manifest, "schema_version": SCHEMA_VERSION, "tables": tables})
        self._finished = True
        return load(self.path)

    def _worth_keeping(self, error: BaseException | None) -> bool:
        """Whether a next process can go on with what is there. What was wrong with the input leaves nothing new."""
        bad_input = isinstance(error, InputError) and not isinstance(error.__cause__, OSError)
        return bool(self._journal.rows) and error is not None and (self._resumed or not bad_input)

    def _publish(self) -> None:
        if isinstance(self.directory, Url):
            assert self.via is not None
            files = [path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file()]
            names = [path.as_posix() for path in files if path.parts[0] not in _OWN]
            remote.publish(self.path, names, self.directory, self.via, last=_MANIFEST)
            return  # what was built here goes
        old = self.path / _REPLACED
        try:
            if (self.directory / _MANIFEST).exists():
                os.replace(self.directory, old)
            os.replace(self.path, self.directory)
            self._published = True
        except OSError as error:
            raise RunError(f"{self.directory}: the run cannot be put in place: {error.strerror}") from error
        finally:
            if not self._published and old.exists():
                os.replace(old, self.directory)
        for name in _OWN:
            shutil.rmtree(self.directory / name, ignore_errors=True)
            (self.directory / name).unlink(missing_ok=True)


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
            return _dataset(self.path, table, self._without(where)).to_table(columns=names, filter=expression)
        except (pa.ArrowException, OSError) as error:
            problem = str(error).split("\n")[0]
            if "FieldRef" in problem:
                raise RunError(f"{table}: the filter names an unknown column; there are {_names(table)}") from None
            raise RunError(f"{self.path}: table {table} cannot be read: {problem}; make the run again") from error

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
                _write_manifest(Path(here), self.manifest)
                others = [name for name in _parts(self.path, table) if name != _FIRST]
                remote.remove(self.path / f"tables/{table}", others)
                remote.upload(Path(here), self.path, [_MANIFEST])
            return
        folder = self.path / "tables" / table
        write_parquet(table, body, folder / _FIRST)
        for path in folder.glob("*.parquet"):
            if path.name != _FIRST:
                path.unlink()
        _write_manifest(self.path, self.manifest)

    def drop(self, table: str) -> None:
        """Take a table out of the run, if it has it."""
        if self.manifest["tables"].pop(table, None) is None:
            return
        if isinstance(self.path, Url):
            with tempfile.TemporaryDirectory() as here:
                _write_manifest(Path(here), self.manifest)
                remote.upload(Path(here), self.path, [_MANIFEST])
                remote.remove(self.path / f"tables/{table}")
            return
        _write_manifest(self.path, self.manifest)
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

    def _sizes(self) -> list[tuple[str, str, str]]:
        return [
            (name, f"{counts['rows']:,}", size_text(sum(_parts(self.path, name).values())))
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
    """Open a finished run: a directory's path or a URL (s3://bucket/run).

    Raises RunError where it is none, is newer than this program, or lacks or broke a file.
    """
    directory = place_of(path)
    manifest = _manifest(directory)
    if manifest is None:
        raise RunError(f"{path}: not a run directory (no readable {_MANIFEST}); pass what `probes run --out` wrote")
    if (written := manifest["schema_version"]) != SCHEMA_VERSION:
        advice = (
            "update it" if written > SCHEMA_VERSION else "make the run again, or read its Parquet files by themselves"
        )
        raise RunError(
            f"{path}: its tables have schema version {written}, and this program reads {SCHEMA_VERSION}; {advice}"
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
        if isinstance(directory, Path):  # at a URL a file is whole or absent
            for part in (directory / "tables" / table / name for name in parts):
                if not _is_whole(part):
                    raise RunError(f"{part}: not a whole Parquet file; the run is damaged, make it again")
    return Run(directory, manifest)


_MANIFEST, _LOCK, _JOURNAL, _REPLACED = "manifest.json", ".lock", "journal.jsonl", ".replaced"
_REPORT = "report.html"
_OWN = (_LOCK, _JOURNAL, _REPLACED, SHARES)  # what lies beside a run while it is built


def _refuse_occupied(directory: Place, shown: str | Path, force: bool) -> None:
    if isinstance(directory, Url):  # without a manifest, tables are what a killed upload left
        others = any(not name.startswith("tables/") for name in remote.sizes(directory) if name != _REPORT)
    elif not directory.exists():
        return
    elif not directory.is_dir():
        raise RunError(f"{shown} is a file; choose another --out")
    else:
        others = any(directory.iterdir())
    manifest = _manifest(directory)
    if manifest is None and others:
        raise RunError(f"{shown} is not empty and holds no run; choose another --out")
    if manifest is not None and not force:
        raise RunError(
            f"{shown} holds another run (suite {_suite_name(manifest)}); choose another --out or pass --force"
        )


def _claim(partial: Path, directory: Place) -> IO[str]:
    """Make `partial` and hold its lock. A live writer is respected; what a killed one cannot go on with is removed."""
    busy = RunError(f"{partial}: another process is writing this run; wait or choose another --out")
    try:
        if partial.exists() and any(partial.iterdir()) and not (partial / _LOCK).exists():
            raise RunError(f"{partial} is in the way and is not ours; move it or choose another --out")
        partial.mkdir(parents=True, exist_ok=True)
        lock = open(partial / _LOCK, "a", encoding="utf-8")  # noqa: SIM115 (held until the run is finished)
        if not _try_lock(lock) or not _is_at(lock, partial / _LOCK):
            lock.close()
            raise busy
        replaced = partial / _REPLACED
        if isinstance(directory, Path) and replaced.exists() and not directory.exists():
            os.replace(replaced, directory)  # it was killed while it put a run in another's place
    except OSError as error:
        raise RunError(f"{partial.parent} cannot be written: {error.strerror}; choose another --out") from None
    if not (partial / _JOURNAL).exists():
        _clear(partial)
    return lock


def _clear(partial: Path) -> None:
    """Empty `partial`, but for its lock."""
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)


def _files_by_name(partial: Path) -> dict[tuple[str, str], list[Path]]:
    """Table files by table and name, shares included."""
    found: dict[tuple[str, str], list[Path]] = {}
    for root in (partial / "tables", partial / SHARES / "tables"):
        for path in root.rglob("*.parquet"):
            found.setdefault((path.relative_to(root).parts[0], path.name), []).append(path)
    return found


def _is_at(handle: IO[str], path: Path) -> bool:
    """Whether the open file still lies at `path`: a writer that just finished takes its lock file along."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


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


def _manifest(directory: Place) -> dict[str, Any] | None:
    """The manifest of a run of ours, else None."""
    try:
        path = directory / _MANIFEST
        manifest = json.loads(path.read_bytes() if isinstance(path, Path) else remote.read(path) or b"")
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


def _suite_name(manifest: Mapping[str, Any]) -> str:
    suite = manifest.get("suite")
    return str(suite.get("name", "unnamed") if isinstance(suite, dict) else suite or "unnamed")


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


def _is_whole(path: Path) -> bool:
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


def size_text(size: int) -> str:
    """A number of bytes as people say it: 4.2 MB."""
    power = next(i for i in (0, 1, 2, 3) if size < 1000 ** (i + 1) or i == 3)
    return f"{size / 1000**power:.{min(power, 1)}f} {('B', 'KB', 'MB', 'GB')[power]}"
