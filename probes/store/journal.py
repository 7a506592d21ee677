"""A record of every finished piece of a run, so that a killed run resumes where it stopped.

A finished run keeps it: by its first line another suite is seen to ask for more of the same, see `additions`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from probes.errors import RunError
from probes.store.remote import Place, content_of
from tv.runtime.atomic import replacing

#: The record's file in a run.
JOURNAL = "journal.jsonl"
#: The record of one finished piece of work: at least `shard`, and `tables` with their rows and files.
Row = dict[str, Any]
#: The directory inside a run's that holds what is there of unfinished pieces: a folder for each shard of a capture, and
#: one below the name of its stage for each other piece.
BATCHES = "batches"
#: The directory inside a run's that holds what attributions computed, a folder for each tuned model.
KEPT = "kept"


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
        lines = whole_lines(path)
        if lines:
            self.identity = lines[0]
            self.rows = {(line["stage"], line["shard"]): line for line in lines[1:]}

    def begin(self, identity: Mapping[str, Any], rows: Mapping[tuple[str, str], Row] | None = None) -> None:
        """Write a new journal in this one's place: its first line, and the pieces that are complete already."""
        self.identity, self.rows = json.loads(json.dumps(identity)), dict(rows or {})
        lines = [self.identity, *({**row, "stage": stage} for (stage, _), row in sorted(self.rows.items()))]
        with replacing(self.path, RunError) as temporary:
            temporary.write_bytes(b"".join(map(_line, lines)))

    def append(self, stage: str, row: Row) -> None:
        """Record that a piece of a stage is complete."""
        self.rows[stage, row["shard"]] = row
        append_line(self.path, {**row, "stage": stage})

    def change(self, identity: Mapping[str, Any]) -> str | None:
        """The first change since the journal was begun, in words; None where nothing changed."""
        return None if self.identity is None else change_of(self.identity, json.loads(json.dumps(identity)))


def append_line(path: Path, line: Any) -> None:
    """Append a line of JSON to a file. It is on disk when this returns; RunError where the disk refuses."""
    try:
        with open(path, "ab") as file:
            file.write(_line(line))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines; the rest is cut off the file, so that more can be appended."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return lines_of(whole)


def journal_of(run: Place) -> list[dict[str, Any]]:
    """The lines of a finished run's journal; none where it has none that can be read."""
    try:
        return lines_of(content_of(run / JOURNAL) or b"")
    except (OSError, ValueError):
        return []


def lines_of(content: bytes) -> list[dict[str, Any]]:
    """The lines of a file's content."""
    return [json.loads(line) for line in content.splitlines()]


def change_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first change between two identities, in words; None where nothing changed."""
    return next(_changes(before, now, ""), None)


def _line(line: Any) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _changes(before: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _changes(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        shown = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
        short = max(map(len, shown)) <= 60 and name != "prompts"  # those are digests
        yield f"{name} was {shown[0]} and is {shown[1]}" if short else f"{name} changed"
