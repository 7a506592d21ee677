"""Files and directories that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tv.errors import InputError


@contextmanager
def replacing(path: Path, error: type[InputError]) -> Iterator[Path]:
    """A temporary path beside `path`, synced to disk and renamed to `path` if the block succeeds, removed otherwise.

    Processes that write one path at once do not collide: each has its temporary file, and the last to finish wins.
    Raises `error`, in one line, where writing fails.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        raise error(f"{path}: cannot be written: {problem.strerror or problem}") from problem
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def replacing_directory(path: Path, error: type[InputError]) -> Iterator[Path]:
    """A temporary directory beside `path`, renamed to `path` if the block succeeds, removed otherwise.

    An existing directory is replaced at the end, and stays if anything fails before. What a killed process left behind
    is removed. Raises `error`, in one line, where writing fails.
    """
    _remove_left_over(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = temporary.with_suffix(".old")
    try:
        temporary.mkdir()
        yield temporary
        for file in (file for file in temporary.rglob("*") if file.is_file()):
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as problem:
        raise error(f"{path}: cannot be written: {problem.strerror or problem}") from problem
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for directory in (temporary, old):
            shutil.rmtree(directory, ignore_errors=True)


def _remove_left_over(path: Path) -> None:
    """Remove temporary directories of dead processes; restore one whose replacement was killed half-way."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        pid = left.name.rpartition(".")[0].rpartition(".")[2]
        if not left.is_dir() or not pid.isdigit() or left.suffix not in (".tmp", ".old") or _runs(int(pid)):
            continue
        if left.suffix == ".old" and not path.exists():
            os.replace(left, path)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _runs(pid: int) -> bool:
    """Whether a process with this id is alive on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True
