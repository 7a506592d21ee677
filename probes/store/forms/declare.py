"""How a table is declared, and how columns are added to an existing one.

A file that computes something new declares its table or columns beside the function. Reading a run needs no more than
these declarations, so this room imports nothing but columns.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tv.columns import Column, TableForm
from tv.runtime.registry import Registry

TABLES: Registry[TableForm] = Registry("table", "probes.store.forms")


def table(name: str, rows: str, columns: Sequence[Column], partitions: Sequence[str] = (), since: int = 3) -> TableForm:
    """Declare a table of a run.

    Args:
        name: Its name, as in `run[name]`.
        rows: What a row is about: "place of a prompt and module".
        columns: Its columns, in order, keys first.
        partitions: The columns that its directories are split by.
        since: The schema version that brought it.

    Returns:
        The declaration.

    Examples:
        >>> TABLES["contributions"].partitions
        ('layer',)
    """
    return TABLES.add(name, TableForm(name, rows, tuple(columns), tuple(partitions), since), _module())


def extend(name: str, *columns: Column) -> None:
    """Add columns at the end of a table that is declared elsewhere; they need a `since` of their own.

    Args:
        name: The table.
        columns: What is added. Runs of an earlier schema version read as null there.
    """
    form = TABLES.one(name)
    TABLES.replace(name, form.with_columns(columns))


def _module() -> str:
    """The declaring module, two calls up."""
    return str(sys._getframe(2).f_globals["__name__"])
