"""A record of every finished piece of a run, so that a killed run resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from probes.errors import RunError

#: The record of one finished piece of work: at least `shard`, and `tables` with their rows and files.
Row = dict[str, Any]
#: The directory inside a run's that holds what is there of unfinished shards, a folder each.
BATCHES = "batches"


def digest(identity: Mapping[str, Any] | None) -> str:
    """A short hash of an identity, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Journal:
    """A file of JSON lines: the first says which run it is, every other one what is complete.

    A line is on disk before `append` returns; one that a kill cut short is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: dict[str, Any] | None = None
        self.rows: dict[tuple[str, str], Row] = {}  # by stage and shard
        lines = _whole_lines(path)
        if lines:
            self.identity = lines[0]
            self.rows = {(line["stage"], line["shard"]): line for line in lines[1:]}

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Write the first line of a new journal."""
        self.identity, self.rows = json.loads(json.dumps(identity)), {}
        self.path.unlink(missing_ok=True)
        self._write(self.identity)

    def append(self, stage: str, row: Row) -> None:
        """Record that a piece of a stage is complete."""
        self.rows[stage, row["shard"]] = row
        self._write({"stage": stage, **row})

    def change(self, identity: Mapping[str, Any]) -> str | None:
        """The first change since the journal was begun, in words; None where nothing changed."""
        now = json.loads(json.dumps(identity))
        return None if self.identity is None else next(_changes(self.identity, now, ""), None)

    def _write(self, line: Mapping[str, Any] | None) -> None:
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from error


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines; the rest is cut off the file, so that more can be appended."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _changes(before: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _changes(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        shown = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
        yield f"{name} was {shown[0]} and is {shown[1]}" if max(map(len, shown)) <= 60 else f"{name} changed"
