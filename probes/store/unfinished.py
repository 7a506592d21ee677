"""What is done of a piece that is not finished, part by part on disk: a killed run loses only the part in progress."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from probes.errors import RunError
from probes.store.journal import append_line, whole_lines


class Unfinished(MutableMapping[str, Any]):
    """Parts of a piece by name, JSON each, in a file of one line a part. A line is there whole or counts as not there.

    Numbers come back to the bit.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._parts: dict[str, Any] = {name: part for line in whole_lines(file) for name, part in line.items()}

    def __getitem__(self, name: str) -> Any:
        return self._parts[name]

    def __setitem__(self, name: str, part: Any) -> None:
        """Keep a part, here and on disk. Raises RunError where the disk refuses."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.file.parent}: cannot be created: {error.strerror}") from error
        # Numbers of numpy and of torch are written as Python's.
        plain = json.loads(json.dumps(part, default=lambda number: number.item()))
        append_line(self.file, {name: plain})
        self._parts[name] = plain

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: a part that is kept stays until the piece is finished")

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
