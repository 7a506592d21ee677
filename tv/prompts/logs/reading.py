"""A log by its path: a file of whichever evaluation, or a folder with one log a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tv.errors import PromptError
from tv.prompts.logs.inspect import is_log, read_eval, read_json
from tv.prompts.logs.item import Log
from tv.prompts.logs.lm_eval import is_samples, read_samples

_BEGINNING = 2**16  # bytes of a JSON file that are looked at
_FEW = 3  # names in a message


def read_log(path: Path) -> list[Log]:
    """The log in a file, or of each task the newest in a folder and below it.

    Raises:
        PromptError: It holds no log, logs of several models, or one that cannot be read.
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.exists():
        raise PromptError(f"{path}: no such log")
    log = _one(path)
    if log is None:
        raise PromptError(
            f"{path}: no log that can be read; samples_TASK_DATE.jsonl of lm-evaluation-harness (--log_samples), and "
            ".eval or .json of Inspect can"
        )
    return [log]


def is_log_file(path: Path) -> bool:
    """Whether a file, or a folder, is a log by its name and beginning."""
    if path.is_dir():
        return any(is_log_file(file) for file in _files(path))
    if path.suffix.casefold() == ".eval":
        return True
    if path.suffix.casefold() not in (".jsonl", ".json") or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING)
    except OSError:
        return False
    return _kind(path, beginning) is not None


def _one(path: Path) -> Log | None:
    """The log in a file; None where it is none."""
    if path.suffix.casefold() == ".eval":
        return read_eval(path)
    if not path.is_file():
        raise PromptError(f"{path}: not a regular file; pass a log")
    with path.open("rb") as file:
        kind = _kind(path, file.read(_BEGINNING))
    return None if kind is None else read_samples(path) if kind == "samples" else read_json(path)


def _kind(path: Path, beginning: bytes) -> str | None:
    """By the first line where that is whole, else by the first keys: a sample may be longer than what is looked at."""
    line = beginning.lstrip().split(b"\n", 1)[0]
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        first = None
    if is_samples(first) or (first is None and line[:40].replace(b" ", b"").startswith(b'{"doc_id":')):
        return "samples"
    opens = beginning[:400].split()
    if is_log(first) or (b"".join(opens).startswith(b'{"version":') and b'"eval":' in beginning):
        return "inspect"
    return None


def _in_folder(folder: Path) -> list[Log]:
    logs = [log for file in _files(folder) if (log := _one(file)) is not None]
    if not logs:
        raise PromptError(f"{folder}: no log in this folder; it holds no samples_*.jsonl and no log of Inspect")
    models = list(dict.fromkeys(log.model for log in logs))
    if len(models) > 1:
        listed = ", ".join(models[:_FEW]) + ", …" * (len(models) > _FEW)
        raise PromptError(f"{folder}: logs of {len(models)} models ({listed}); pass the files, or a folder, of one")
    return _newest(logs)


def _files(folder: Path) -> list[Path]:
    names = [path for path in folder.rglob("*") if path.suffix.casefold() in (".jsonl", ".eval", ".json")]
    return sorted(path for path in names if path.is_file() and not path.name.startswith("results_"))


def _newest(logs: Sequence[Log]) -> list[Log]:
    """Of several logs of a task the newest, which says so."""
    by_task: dict[str, list[Log]] = {}
    for log in logs:
        by_task.setdefault(log.task, []).append(log)
    found = []
    for of_task in by_task.values():
        *older, newest = sorted(of_task, key=lambda log: (log.made, log.place))
        note = f"{newest.place}: the newest of {len(of_task)} logs of {newest.task}; the others are not read"
        notes = (*newest.notes, note) if older else newest.notes
        found.append(Log(newest.place, newest.model, newest.task, newest.made, newest.items, notes))
    return found
