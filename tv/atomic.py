"""Files that are whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tv.errors import InputError


@contextmanager
def replacing(path: Path, error: type[InputError]) -> Iterator[Path]:
    """A temporary path beside `path`, put on disk and renamed to `path` when the block ends well, removed otherwise.

    Processes that write one path at once do not meet: each has its own, and the last to end stays. Raises `error`, in
    one line, where the disk refuses.
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
