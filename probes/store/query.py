"""SQL over a run's tables through DuckDB, in a separate process that can neither write nor read anything else.

DuckDB's memory limit does not count long strings, and `repeat('x', 1000000000)` is a short statement. The system bounds
that process instead, where it can, and the limits of this one stay unchanged.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any

import pyarrow as pa
import pyarrow.dataset as ds

from probes.errors import RunError

#: The start-up code of the other process, which imports from the same paths as this one.
_START = "import sys; sys.path[:] = {path!r}; from probes.store.query_process import serve; serve()"


def query(tables: Mapping[str, Callable[[], ds.Dataset]], statement: str) -> pa.Table:
    """The answer to one SELECT (or WITH, FROM, DESCRIBE, SUMMARIZE, EXPLAIN) over `tables`.

    The first query starts a process, which later ones reuse; threads that ask at the same time have one each.

    Args:
        tables: By name, the function that opens each; only those that the statement names are opened, and of them only
            the columns and row groups that it needs are read.
        statement: In DuckDB's dialect.

    Returns:
        The answer as an Arrow table.

    Raises:
        RunError: In one line: no such statement, a table that is not there, something outside the tables, or more than
            4 GB of memory needed.
    """
    named = [name for name in tables if name.lower() in statement.lower()] or list(tables)
    opened = {name: tables[name]() for name in named}
    with _process() as process:
        said, answer = process.ask((opened, list(tables), statement))
    if said != "table":
        raise RunError(f"query: {answer}") from (LookupError(answer) if said == "catalog" else None)
    return pa.ipc.open_stream(answer).read_all()


class _Process:
    """A process that answers one statement at a time, until its input ends."""

    def __init__(self) -> None:
        program = [sys.executable, "-c", _START.format(path=[os.path.abspath(place) for place in sys.path])]
        # Where it stands must not go while it lives: DuckDB asks for it, and ends the process where there is none.
        root = Path(sys.executable).anchor
        self._child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)

    def ask(self, question: tuple[Mapping[str, ds.Dataset], list[str], str]) -> tuple[str, Any]:
        """("table", Arrow's stream) or (the kind of mistake, its message in one line)."""
        to, back = self._child.stdin, self._child.stdout
        assert to is not None and back is not None
        try:
            write(to, question)
            return read(back)
        except (EOFError, OSError):
            self.end()  # its exit may not be visible yet, and it must not be asked again
            return "died", "it needs more memory than the 4 GB that a query may take; ask for fewer columns or rows"

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def end(self, patience: float = 0) -> None:
        """Kill it, unless it ends within `patience` seconds after its input is closed."""
        with suppress(OSError, subprocess.TimeoutExpired):
            if patience and self._child.stdin is not None:
                self._child.stdin.close()
                self._child.wait(patience)
        with suppress(OSError):
            self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


_idle: list[_Process] = []
_lock = Lock()


@contextmanager
def _process() -> Any:
    """A process that no other thread uses; it is kept for the next statement unless it died."""
    with _lock:
        process = _idle.pop() if _idle else None
    process = process or _Process()
    try:
        yield process
    except BaseException:
        process.end()
        raise
    if process.alive:
        with _lock:
            _idle.append(process)


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end(patience=1)


def write(pipe: IO[bytes], value: object) -> None:
    """Write a value, preceded by its length."""
    content = pickle.dumps(value)
    pipe.write(len(content).to_bytes(8, "little") + content)
    pipe.flush()


def read(pipe: IO[bytes]) -> Any:
    """Read what `write` wrote at the other end. Raises EOFError where that end is closed."""
    length = pipe.read(8)
    content = pipe.read(int.from_bytes(length, "little")) if len(length) == 8 else b""
    if len(length) < 8 or len(content) < int.from_bytes(length, "little"):
        raise EOFError
    return pickle.loads(content)  # the two ends are one program
