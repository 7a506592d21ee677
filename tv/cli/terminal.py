"""What a command says: to a person, or with --json to a program, one JSON object a line.

Results go to stdout; progress, remarks and errors to stderr, in either form. With --quiet nothing is left of all that
but results and errors.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TextIO

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


@dataclass
class _Speech:
    """How the command speaks, and with --json what its result has gathered so far."""

    quiet: bool = False
    json: bool = False
    result: dict[str, list[Any]] = field(default_factory=lambda: {"written": [], "tables": [], "said": [], "notes": []})


_speech = _Speech()
_LONG = 40  # characters; a longer cell is broken into lines
_WIDE = 10_000  # than any table


def begin(*, quiet: bool, json: bool) -> None:
    """From here on, speak so."""
    global _speech
    _speech = _Speech(quiet, json)


def end(command: str) -> None:
    """With --json, the result: one object on stdout."""
    if _speech.json:
        _line(sys.stdout, command=command, status=0, **_speech.result)


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 3) -> None:
    """A table on stdout; numbers as `number` gives them. It is as wide as it must be: no number loses its end."""
    if _speech.json:
        _speech.result["tables"].append({"title": title, "columns": headings, "data": rows})
        return
    cells = [[number(cell, digits) if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        width = max(map(cell_len, [heading, *(row[i] for row in cells)]))
        table.add_column(Text(heading), overflow="fold", no_wrap=width <= _LONG, min_width=min(width, _LONG))
    for own in cells:
        table.add_row(*(Text(cell) for cell in own))  # not markup: a token or a path may hold square brackets
    console = Console()
    console.width = max(console.width, Measurement.get(console, console.options.update(width=_WIDE), table).minimum)
    if title:
        console.print(Text(f"\n {title}", "italic"), soft_wrap=True)
    console.print(table)


def say(text: str) -> None:
    """A sentence of the result, on stdout."""
    if _speech.json:
        _speech.result["said"].append(text)
    else:
        typer.echo(text)


def wrote(path: object, what: str) -> None:
    """What was written, and where."""
    say(f"{path}: {what}")
    _speech.result["written"].append(str(path))


def print_notes(notes: Iterable[str]) -> None:
    """What a reader should know of a result, a line each."""
    for note in notes:
        if _speech.json:
            _speech.result["notes"].append(note)
        elif not _speech.quiet:
            typer.echo(f"note: {note}")


def remark(text: str) -> None:
    """What is good to know while a command works, on stderr."""
    if _speech.quiet:
        return
    if _speech.json:
        _line(sys.stderr, remark=text)
    else:
        typer.echo(text, err=True)


def fail(message: str, status: int) -> None:
    """Why a command ends here, on stderr."""
    if _speech.json:
        _line(sys.stderr, error=message, status=status)
    else:
        print("error:", message, file=sys.stderr)


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, one less of what is below 0.1; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits if abs(value) >= 0.1 else digits - 1}g}"


class Stages:
    """One progress bar a stage, on stderr; with --json a line a step."""

    def __init__(self, *, transient: bool = False) -> None:
        columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self.progress = Progress(*columns, console=Console(stderr=True), transient=transient)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress.live.is_started:
            self.progress.stop()

    def update(self, stage: str, done: int = 0, total: int | None = None, label: str = "") -> None:
        """`done` of `total` parts of `stage` are done; `label` names the last."""
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total)
        if _speech.quiet:
            return
        if _speech.json:
            _line(sys.stderr, stage=stage, done=done, total=total, label=label)
            return
        self.progress.start()
        self.progress.update(self.tasks[stage], completed=done, total=total)


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """The bar of the only stage, gone when it is done; called as progress(done, total, label)."""
    with Stages(transient=True) as stages:
        stages.update(title)
        yield partial(stages.update, title)


def _line(stream: TextIO, **content: object) -> None:
    print(json.dumps(_plain(content), ensure_ascii=False), file=stream, flush=True)


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, no infinity, nothing of numpy's own."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
