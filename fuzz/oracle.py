"""What every reader owes whatever the bytes are: what it read, or an InputError in one line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from tv.errors import InputError


def is_read(files: dict[str, bytes], read: Callable[[Path], object]) -> bool:
    """Whether `read` takes a directory of these files. Raises AssertionError for a refusal that is not one line."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        try:
            read(Path(name))
        except InputError as error:
            message = str(error)
            assert message.strip() and message.isprintable(), message
            return False
    return True
