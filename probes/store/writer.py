"""The writer of a run directory, which makes it whole or not at all, however often it is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from probes.errors import NothingFound, RunError
from probes.store import remote
from probes.store.additions import Added, added
from probes.store.digests import FILES, digests_of
from probes.store.journal import BATCHES, JOURNAL, KEPT, Journal, Row, digest, journal_of
from probes.store.manifest import MANIFEST, read_manifest, suite_name, write_manifest
from probes.store.neurons import SHARES, summed
from probes.store.parquet import Columns, write_part
from probes.store.remote import Place, Url, place_of, staging
from probes.store.run import Run, is_whole, load
from probes.store.schemas import SCHEMA_VERSION, SCHEMAS
from probes.store.unfinished import Unfinished
from tv.errors import InputError, LackOfMemory
from tv.runtime.resident import trim

_LOCK, _REPLACED, _REPORT = ".lock", ".replaced", "report.html"
_OWN = (_LOCK, _REPLACED, BATCHES)  # the writer's files beside a run while it is built
_NEEDED = (JOURNAL, SHARES, KEPT)  # those that a run keeps, so that stages, methods and prompts can be added


def finished(directory: str | Path, identity: Mapping[str, Any]) -> Run | None:
    """The run at `directory` where it has this `identity` (see `RunWriter.begin`), else None.

    Removes the working files of a writer that was killed just after it had put the run in place. The run may lack
    stages of the job (see `stages_of`): then a writer `extends` it.
    """
    place = place_of(directory)
    manifest = read_manifest(place)
    if manifest is None or manifest.get("identity") != digest(identity):
        return None
    if isinstance(place, Url):
        remote.remove(_via(place))
        shutil.rmtree(_partial(place), ignore_errors=True)
    else:
        _tidy(place)
    return load(directory)


def extendable(directory: str | Path, identity: Mapping[str, Any]) -> tuple[Run, Added] | None:
    """The run at `directory`, where `identity` has nothing but more of the same; and what it has more.

    None where there is no run, or none that says what it was made of. Raises RunError, saying what changed, where the
    run is another one.
    """
    place = place_of(directory)
    manifest = read_manifest(place)
    lines = journal_of(place) if manifest is not None else []
    if manifest is None or not lines or manifest.get("identity") != digest(lines[0]):
        return None
    more = added(lines[0], json.loads(json.dumps(identity)))
    if isinstance(more, str):
        raise RunError(f"{_another(directory, manifest)}: {more}")
    return load(directory), more


class RunWriter:
    """Makes a run directory whole or not at all.

        with RunWriter("reports/demo") as writer:
            writer.begin({"suite": suite.model_dump(mode="json")})
            writer.stage("weights", "00000", lambda: {"weights": weights, "alignment": alignment})
            run = writer.finish({"suite": suite.model_dump(mode="json")})
        load(writer.directory)

    The run is built beside its place, in `path` (`DIR.partial`), and renamed to `directory` when the context ends after
    `finish`; for a URL (s3://bucket/run) it is built in a temporary directory and uploaded, its manifest last. The next
    process that begins the same run (see `begin`) resumes what a killed or interrupted one left there; bad input
    removes a new run and keeps a resumed one. Raises RunError at construction, before any work, where the
    directory cannot become a run: it holds something else, or another run and `force` is not set, or its parent cannot
    be written. `extends` is the run that is there, where it is the same one and lacks something: what it has is not
    done again, but for the stages in `redo`, and it stays until the new one is whole.
    """

    def __init__(
        self, directory: str | Path, *, force: bool = False, extends: Run | None = None, redo: Collection[str] = ()
    ) -> None:
        place = place_of(directory)
        self.directory = place.resolve() if isinstance(place, Path) else place
        self.force, self._extends, self._redo = force, extends, redo
        self.tables: dict[str, dict[str, int]] = {}
        self._written: set[tuple[str, str, str | None, int | None, str | None]] = set()
        self._finished = self._published = False
        self._manifest: Mapping[str, Any] = {}
        require_place(directory, force=force, extends=extends)
        self.path = _partial(self.directory)
        #: Where workers on machines that do not have `path` put their files; None where all have it.
        self.via = _via(self.directory) if isinstance(self.directory, Url) else None
        if self.via is not None:
            remote.require_writable(self.via)
        self._made = [parent for parent in self.path.parents if not parent.exists()]
        self._lock = _claim(self.path, self.directory)
        require_place(directory, force=force, extends=extends)  # again: a run that a killed writer moved is back
        self._journal = Journal(self.path / JOURNAL)
        self._resumed = self._holds_work
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
            for parent in self._made:  # of a run that failed; the others are not empty
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Say which run this is: everything its rows depend on, as JSON.

        What a killed process finished of the same run counts as done. Raises RunError, saying what changed, where a
        killed process left another run; with `force` that one is removed instead.
        """
        change = self._journal.change(identity)
        if change is not None and not self.force:
            raise RunError(
                f"{self.path.name} holds an unfinished run, and {change}; change it back to resume that run, "
                "or pass --force to start again"
            )
        if change is not None or self._journal.identity is None:
            _clear(self.path)
            if self.via is not None:
                remote.remove(self.via)
            self._resumed, self._left = False, {}
            rows = {} if self._extends is None else self._taken_up(self._extends)
            self._journal.begin(identity, rows)

    def _taken_up(self, run: Run) -> dict[tuple[str, str], Row]:
        """What a finished run's journal counts. Its files are brought here, as hard links where possible."""
        rows = {(row["stage"], row["shard"]): row for row in journal_of(run.path)[1:] if row["stage"] not in self._redo}
        _bring(run.path, self.path)
        counted = {(table, f"part-{row['shard']}.parquet") for row in rows.values() for table in row["tables"]}
        self._left = _files_by_name(self.path)
        for name in self._left.keys() - counted:
            for path in self._left.pop(name):
                path.unlink()
        return rows

    def done(self, stage: str) -> list[str]:
        """The shards of a stage that are complete, as the journal has them."""
        return [shard for name, shard in self._journal.rows if name == stage]

    def has(self, stage: str, shard: str) -> bool:
        """Whether a killed process had finished this and its files are whole; if so, count them."""
        row = self._journal.rows.get((stage, shard))
        if row is None:
            return False
        for table, counts in row["tables"].items():
            parts = self._left.get((table, f"part-{shard}.parquet"), [])
            if len(parts) != counts["files"] or not all(map(is_whole, parts)):
                return False
        self.record(row["tables"])
        return True

    def complete(self, stage: str, row: Row) -> None:
        """Record a piece of a stage whose files are on disk: `row` names its shard, and rows and files by table."""
        self._journal.append(stage, row)
        self.record(row["tables"])
        for folder in (self.path / BATCHES / row["shard"], self.folder(stage, row["shard"])):
            shutil.rmtree(folder, ignore_errors=True)

    def unfinished(self, stage: str, shard: str, of: str) -> Unfinished:
        """What a killed process has done `of` a piece that is not complete, and what this one does of it."""
        return Unfinished(self.folder(stage, shard) / f"{of}.jsonl")

    def folder(self, stage: str, shard: str) -> Path:
        """Where what is there of a piece lies until the piece is complete."""
        return self.path / BATCHES / stage / shard

    def stage(self, stage: str, shard: str, make: Callable[[], Mapping[str, Columns]]) -> None:
        """Write the tables that `make` returns, each as one file. Skip what a killed process had finished."""
        if self.has(stage, shard):
            return
        counts = {
            table: {"rows": write_part(self.path, table, columns, shard=shard), "files": 1}
            for table, columns in make().items()
        }
        self.complete(stage, {"shard": shard, "tables": counts})
        trim()  # no stage needs what another made

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
        """Write one shard of a table (see `probes.store.parquet.write_part`) and count it."""
        place = (table, shard, tuned, layer, site)
        if place in self._written:
            raise ValueError(f"{table}: shard {shard} is already written")
        rows = write_part(self.path, table, columns, shard=shard, tuned=tuned, layer=layer, site=site)
        self._written.add(place)
        self.record({table: {"rows": rows, "files": 1}})

    def record(self, written: Mapping[str, Mapping[str, int]]) -> None:
        """Count what a shard wrote below `path` by itself: rows and files by table."""
        for table, more in written.items():
            counts = self.tables.setdefault(table, {"rows": 0, "files": 0})
            for name in counts:
                counts[name] += more[name]

    def so_far(self, manifest: Mapping[str, Any]) -> Run:
        """The tables written so far, as a run that can be read before it is finished."""
        return Run(self.path, {**manifest, "schema_version": SCHEMA_VERSION, "tables": dict(self.tables)})

    def finish(self, manifest: Mapping[str, Any]) -> Run:
        """Sum what the shards counted, write the manifest, and open the run where it is being built.

        More can still be added to it there.
        """
        if (neurons := summed(self.path)) is not None:
            self.tables.pop("neurons", None)
            self.write("neurons", neurons, shard="00000")
        for cut_short in self.path.rglob("*.tmp"):
            cut_short.unlink()
        if self._journal.identity is not None:
            self._journal.begin(self._journal.identity, self._journal.rows)  # in an order that no kill changes
        tables = {table: self.tables[table] for table in SCHEMAS if table in self.tables}
        header = {"schema_version": SCHEMA_VERSION, "identity": digest(self._journal.identity), "tables": tables}
        listed = {FILES: digests_of(self.path, ("tables", *_NEEDED))}
        self._manifest = {**manifest, **header, **listed}
        write_manifest(self.path, self._manifest)
        self._finished = True
        return load(self.path)

    def _worth_keeping(self, error: BaseException | None) -> bool:
        """Whether the next process can resume from what is there. Bad input leaves nothing of a new run."""
        of_machine = isinstance(error, LackOfMemory) or (error and isinstance(error.__cause__, OSError))
        bad_input = isinstance(error, InputError) and not isinstance(error, NothingFound) and not of_machine
        return self._holds_work and error is not None and (self._resumed or not bad_input)

    @property
    def _holds_work(self) -> bool:
        """Whether anything of the run is done: pieces of it, or parts of one."""
        return bool(self._journal.rows) or any(any((self.path / of).glob("*/*")) for of in (BATCHES, KEPT))

    def _publish(self) -> None:
        if isinstance(self.directory, Url):
            assert self.via is not None
            files = [path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file()]
            names = [path.as_posix() for path in files if path.parts[0] not in _OWN]
            remote.publish(self.path, names, self.directory, self.via, last=MANIFEST)
            return  # the local copy is removed
        old = self.path / _REPLACED
        try:
            if (self.directory / MANIFEST).exists():
                os.replace(self.directory, old)
            os.replace(self.path, self.directory)
            self._published = True
        except OSError as error:
            raise RunError(f"{self.directory}: the run cannot be put in place: {error.strerror}") from error
        finally:
            if not self._published and old.exists():
                os.replace(old, self.directory)
        _tidy(self.directory)


def require_place(shown: str | Path, *, force: bool, extends: Run | None = None) -> None:
    """Raise RunError where a run cannot take its place: something else is there, or another run without `force`."""
    place = place_of(shown)
    directory = place.resolve() if isinstance(place, Path) else place
    if isinstance(directory, Url):  # without a manifest, tables are left from a killed upload
        others = any(not name.startswith(("tables/", *_NEEDED)) for name in remote.sizes(directory) if name != _REPORT)
    elif not directory.exists():
        return
    elif not directory.is_dir():
        raise RunError(f"{shown} is a file; choose another --out")
    else:
        others = any(directory.iterdir())
    manifest = read_manifest(directory)
    if manifest is None and others:
        raise RunError(f"{shown} is not empty and holds no run; choose another --out")
    if manifest is not None and not force and extends is None:
        raise RunError(_another(shown, manifest))


def _another(shown: str | Path, manifest: Mapping[str, Any]) -> str:
    return f"{shown} holds another run (suite {suite_name(manifest)}); choose another --out or pass --force"


def _claim(partial: Path, directory: Place) -> IO[str]:
    """Make `partial` and hold its lock. A live writer is an error; what a killed one left unusable is removed."""
    busy = RunError(f"{partial}: another process is writing this run; wait or choose another --out")
    try:
        if partial.exists() and any(partial.iterdir()) and not (partial / _LOCK).exists():
            raise RunError(f"{partial} is in the way and was not made by probes; move it or choose another --out")
        partial.mkdir(parents=True, exist_ok=True)
        lock = open(partial / _LOCK, "a", encoding="utf-8")  # noqa: SIM115 (held until the run is finished)
        if not _try_lock(lock) or not _is_at(lock, partial / _LOCK):
            lock.close()
            raise busy
        replaced = partial / _REPLACED
        if isinstance(directory, Path) and replaced.exists() and not directory.exists():
            os.replace(replaced, directory)  # a writer was killed while it replaced a run
    except OSError as error:
        raise RunError(f"{partial.parent} cannot be written: {error.strerror}; choose another --out") from None
    if not (partial / JOURNAL).exists():
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
    files: dict[tuple[str, str], list[Path]] = {}
    for root in (partial / "tables", partial / SHARES / "tables"):
        for path in root.rglob("*.parquet"):
            files.setdefault((path.relative_to(root).parts[0], path.name), []).append(path)
    return files


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


def _partial(directory: Place) -> Path:
    """Where a run is built."""
    built = staging(directory) if isinstance(directory, Url) else directory
    return built.with_name(built.name + ".partial")


def _via(directory: Url) -> Url:
    return Url(f"{directory.rstrip('/')}.partial")


def _bring(place: Place, directory: Path) -> None:
    """Put the tables of a run, and what it keeps beside them and its journal, into a directory."""
    roots = ("tables/", f"{SHARES}/", f"{KEPT}/")
    if isinstance(place, Url):
        names = [name for name in remote.sizes(place) if name.startswith(roots)]
        remote.fetch({name: place / name for name in names}, directory)
        return
    for path in place.rglob("*"):
        name = path.relative_to(place).as_posix()
        if path.is_file() and name.startswith(roots):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).unlink(missing_ok=True)
            if path.suffix == ".parquet":  # never written to again
                _link(path, directory / name)
            else:
                shutil.copyfile(path, directory / name)


def _link(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:  # a file system without links
        shutil.copyfile(path, name)


def _tidy(directory: Path) -> None:
    """Remove what only the writing of a run needed."""
    for name in _OWN:
        shutil.rmtree(directory / name, ignore_errors=True)
        (directory / name).unlink(missing_ok=True)
