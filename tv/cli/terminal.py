"""What a person sees while a command works, and after."""

from __future__ import annotations

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


def print_table(title: str, headings: list[str], rows: list[list[object]]) -> None:
    """A table on stdout; numbers with three significant digits, NaN as a dash."""
    table = Table(*headings, title=Text(title))
    for row in rows:
        # As text, not markup: a token or a path may hold square brackets.
        table.add_row(*(Text(number(cell) if isinstance(cell, float) else str(cell)) for cell in row))
    Console().print(table)


def number(value: float) -> str:
    """Three significant digits; a dash for NaN."""
    return "–" if pd.isna(value) else f"{value:.3g}"


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
