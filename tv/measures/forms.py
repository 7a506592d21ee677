"""The forms of the tables that weights are measured into."""

from __future__ import annotations

from tv.columns import TableForm
from tv.measures.cosine import COSINES
from tv.measures.declared import MEASURES, TABLES


def form_of(name: str) -> TableForm:
    """The form of the weight table `name`, with the columns of every measure that is registered."""
    form = TABLES.one(name).form
    if name != "weights":
        return form
    return form.with_columns(column for measure in MEASURES.values() for column in measure.columns)


def forms() -> dict[str, TableForm]:
    """Every weight table that a run holds, by name.

    Examples:
        >>> forms()["weights"]["relative_norm"].words
        'relative norm ‖T‖/‖W‖'
    """
    return {name: form_of(name) for name, table in TABLES.items() if table.in_runs} | {COSINES.name: COSINES}
