"""What is measured of weights: columns of the table `weights` and separate tables, each one decorated function.

A function decorated here, in this room or in a package with an entry point of the group "tuning_probes", runs on every
part of a pair. Its values appear in `tv.geometry`, `tv.measured`, a run's tables and the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from tv.columns import Column, TableForm, keys
from tv.measures.part import Part
from tv.runtime.registry import Registry

Row: TypeAlias = Mapping[str, Any]
#: A part of the model → its values by column; nothing where it cannot be measured of such a part.
MeasurePart: TypeAlias = Callable[[Part], Row]
#: A part of the model (and options, by keyword) → rows without the columns that say which part they are about.
TabulatePart: TypeAlias = Callable[..., Iterable[Row]]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class WeightMeasure:
    """Columns of the table `weights`, and the function that computes them."""

    columns: tuple[Column, ...]
    function: MeasurePart


@dataclass(frozen=True)
class WeightTable:
    """A table's form, and the function that yields its rows."""

    form: TableForm
    function: TabulatePart
    in_runs: bool = True  # whether probe suites write it


MEASURES: Registry[WeightMeasure] = Registry("weight measure", "tv.measures")
TABLES: Registry[WeightTable] = Registry("weight table", "tv.measures")


def of_weights(*columns: Column) -> Callable[[F], F]:
    """A decorator: the function computes `columns` of every part of a pair, for the table `weights`.

    Args:
        columns: What it returns by name, in the table's order.
    """

    def decorate(function: F) -> F:
        MEASURES.add(function.__name__, WeightMeasure(columns, function), function.__module__)
        return function

    return decorate


def weight_table(
    name: str,
    rows: str,
    columns: Iterable[Column],
    where: str = "layer module head expert",
    in_runs: bool = True,
) -> Callable[[F], F]:
    """A decorator: the function yields rows of the table `name` for every part of a pair.

    Its keywords with a default are the table's options; see `tv.measured`.

    Args:
        name: The table's name.
        rows: What a row is about, in words.
        columns: What the function yields, in order.
        where: Which of the columns `layer module head expert` say what a row is about.
        in_runs: Whether probe suites write the table.
    """

    def decorate(function: F) -> F:
        form = TableForm(name, rows, (*keys(f"tuned {where}"), *columns))
        TABLES.add(name, WeightTable(form, function, in_runs), function.__module__)
        return function

    return decorate
