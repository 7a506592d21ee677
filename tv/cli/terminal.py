"""What a command says: to a person, or with --json to a program, one JSON object a line.

Results go to stdout; progress, remarks and errors to stderr, in either form. With --quiet only results and errors
remain. No control sequence reaches a person's terminal: names and tokens come from strangers.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TextIO

import typer
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tv.errors import WARNING, printable
from tv.runtime.progress import Pace, duration, sentence


@dataclass(frozen=True)
class Shown:
    """A cell in two forms: `text` on the screen, `value` in JSON, where nothing is rounded for the eye."""

    value: object
    text: str


@dataclass
class _Speech:
    """The output form and, with --json, the result so far."""

    quiet: bool = False
    json: bool = False
    result: dict[str, list[Any]] = field(default_factory=lambda: {"written": [], "tables": [], "said": [], "notes": []})


_speech = _Speech()
_LONG = 40  # characters; a longer cell is broken into lines
_WIDE = 10_000  # wider than any table
_MISSING = "–"


def begin(*, quiet: bool, json: bool) -> None:
    """Set the output form from here on."""
    global _speech
    _speech = _Speech(quiet, json)


def end(command: str, status: int = 0) -> None:
    """With --json, the result: one object on stdout. `status` is the exit status that follows."""
    if _speech.json:
        _line(sys.stdout, command=command, status=status, **_speech.result)


def speaks_json() -> bool:
    """Whether the result goes to a program, which gets all of it."""
    return _speech.json


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]], digits: int = 3) -> None:
    """A table on stdout; numbers as `number` gives them, a dash for what is missing, `Shown` cells as they say.

    It is as wide as needed: no number is cut off.
    """
    if _speech.json:
        _speech.result["tables"].append({"title": title, "columns": headings, "data": rows})
        return
    cells = [[_text(cell, digits) for cell in row] for row in rows]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        width = max(map(cell_len, [heading, *(row[i] for row in cells)]))
        table.add_column(Text(printable(heading)), overflow="fold", no_wrap=width <= _LONG, min_width=min(width, _LONG))
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # not markup: a token or a path may hold square brackets
    console = Console()
    console.width = max(console.width, Measurement.get(console, console.options.update(width=_WIDE), table).minimum)
    if title:
        console.print(Text(f"\n {printable(title)}", "italic"), soft_wrap=True)
    console.print(table)


def say(text: str) -> None:
    """A sentence of the result, on stdout."""
    if _speech.json:
        _speech.result["said"].append(text)
    else:
        typer.echo(printable(text))


def announce(name: str, text: str) -> None:
    """A part of the result that cannot wait for the end: on stdout, with --json an object of its own."""
    if _speech.json:
        _line(sys.stdout, **{name: text})
    else:
        typer.echo(printable(text))


def wrote(path: object, what: str) -> None:
    """What was written, and where."""
    say(f"{path}: {what}")
    _speech.result["written"].append(str(path))


def print_notes(notes: Iterable[str]) -> None:
    """What a reader should know of a result, a line each; warnings on stderr, also with --quiet."""
    for note in notes:
        if _speech.json:
            _speech.result["notes"].append(note)
        elif note.startswith(WARNING):
            typer.echo(printable(note), err=True)
        elif not _speech.quiet:
            typer.echo(f"note: {printable(note)}")


def remark(text: str) -> None:
    """A remark while a command works, on stderr."""
    if _speech.quiet:
        return
    if _speech.json:
        _line(sys.stderr, remark=text)
    else:
        typer.echo(printable(text), err=True)


def fail(message: str, status: int) -> None:
    """Why a command ends here, on stderr."""
    if _speech.json:
        _line(sys.stderr, error=message, status=status)
    else:
        print("error:", printable(message), file=sys.stderr)


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits, one fewer below 0.1; a dash for NaN."""
    return _MISSING if math.isnan(value) else f"{value:.{digits if abs(value) >= 0.1 else digits - 1}g}"


def interval(lo: float, hi: float) -> Shown:
    """One cell for two ends; a dash where there is no interval."""
    return Shown([lo, hi], _MISSING if math.isnan(lo) and math.isnan(hi) else f"[{number(lo)}, {number(hi)}]")


def plain(value: Any) -> Any:
    """A value as JSON holds it: None for NaN, infinity and missing values, no library's types; bytes as hex."""
    if isinstance(value, Shown):
        return plain(value.value)
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    value = _native(value)
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Stages:
    """How far each stage is, and how long it will take yet, on stderr.

    A bar each on a terminal, a line now and then where there is none, with --json a line a step.
    """

    def __init__(self, *, transient: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        """`transient` stages leave nothing behind on a terminal, and say nothing elsewhere unless they take long."""
        name = TextColumn("{task.description:<24}", markup=False)
        columns = name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}")
        self.progress = Progress(*columns, console=Console(stderr=True), transient=transient)
        self.transient, self.clock = transient, clock
        self.tasks: dict[str, TaskID] = {}
        self.stages: dict[str, _Stage] = {}

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress.live.is_started:
            self.progress.stop()

    def update(self, stage: str, done: int = 0, total: int | None = None, label: str = "") -> None:
        """`done` of `total` parts of `stage` are done; `label` names the last."""
        now = self.clock()
        known = self.stages.get(stage)
        if known is None or done < known.done or total != known.total:  # a stage may have steps of their own lengths
            known = self.stages[stage] = _Stage(now, done, total, due=now + _FIRST, again=known is not None)
        known.done = done
        elapsed, left = now - known.began, known.left(now, done, total)
        if _speech.quiet:
            return
        if _speech.json:
            _line(sys.stderr, stage=stage, done=done, total=total, label=label, elapsed=elapsed, left=left)
        elif self.progress.console.is_terminal:
            self._draw(stage, done, total, "" if left is None else f"{duration(left)} left")
        elif known.is_due(now, done, total, self.transient):
            print(sentence(stage, done, total, label, elapsed, left), file=sys.stderr, flush=True)

    def _draw(self, stage: str, done: int, total: int | None, left: str) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(printable(stage), total=total, left="")
        self.progress.start()
        self.progress.update(self.tasks[stage], completed=done, total=total, left="" if done == total else left)


#: Seconds until a stage says something where no bar can be drawn, and between that and the next.
_FIRST, _EVERY = 5.0, 15.0


@dataclass
class _Stage(Pace):
    """A stage, and when it says something next."""

    due: float = 0.0
    again: bool = False  # it is a further step of a stage that said something already
    over: bool = False

    def is_due(self, now: float, done: int, total: int | None, transient: bool) -> bool:
        """Whether a line is to be said now: after a while, then now and then, and once at the end."""
        ends = total is not None and done >= total and not self.over
        self.over = self.over or ends
        late = now >= self.due
        if late:
            self.due = now + _EVERY
        least = _FIRST if transient else 1.0 if self.again else 0.0
        return late or (ends and now - self.began >= least)


@contextmanager
def bar(stage: str) -> Iterator[Callable[[str, int, int, str], None]]:
    """The bar of the only stage, shown before its first part is done and removed at the end."""
    with Stages(transient=True) as stages:
        stages.update(stage)
        yield stages.update


def _line(stream: TextIO, **content: object) -> None:
    print(json.dumps(plain(content)), file=stream, flush=True)


def _text(cell: object, digits: int) -> str:
    """A cell as it is shown; line ends are left to the table, which can show them."""
    if isinstance(cell, Shown):
        return printable(cell.text)
    cell = _native(cell)
    if isinstance(cell, list | tuple):
        return f"[{', '.join(_text(inner, digits) for inner in cell)}]"
    if isinstance(cell, float):
        return number(cell, digits)
    return _MISSING if cell is None else "\n".join(map(printable, str(cell).split("\n")))


def _native(value: Any) -> Any:
    """A Python str, int, float, list or None in place of what numpy, pandas and DuckDB give."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Decimal):  # what DuckDB's sums are
        value = int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        value = value.hex()
    if isinstance(value, str | int | float | list | tuple | None):
        return value
    import pandas as pd  # imported here so that bad input is reported without waiting for it

    return None if pd.isna(value) else str(value)
