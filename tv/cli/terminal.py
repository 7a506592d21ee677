"""What a person sees while a command works, and after."""

from __future__ import annotations

import pandas as pd
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


def print_table(title: str, headings: list[str], rows: list[list[object]]) -> None:
    """A table on stdout; numbers as `number` gives them."""
    table = Table(title=Text(title), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings):
        table.add_column(Text(heading), overflow="fold", no_wrap=i > 0)
    for row in rows:
        # As text, not markup: a token or a path may hold square brackets.
        table.add_row(*(Text(number(cell) if isinstance(cell, float) else str(cell)) for cell in row))
    Console().print(table)


def print_notes(frame: pd.DataFrame) -> None:
    """What a reader should know of the checkpoints under a table, a line each."""
    for note in frame.attrs.get("notes", []):
        typer.echo(f"note: {note}")


def number(value: float) -> str:
    """Three significant digits, two of what is below 0.1; a dash for NaN."""
    return "–" if pd.isna(value) else f"{value:.3g}" if abs(value) >= 0.1 else f"{value:.2g}"


class Bar:
    """A progress bar on stderr, called as progress(done, total, label)."""

    def __init__(self, title: str) -> None:
        columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task(title, total=None)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, done: int, total: int, label: str) -> None:
        self.progress.update(self.task, completed=done, total=total)
