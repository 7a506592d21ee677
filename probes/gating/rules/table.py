"""Rules on any number of any table of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd

from probes.gating.estimates import Estimate, Exact, average
from probes.gating.judging import Bound
from probes.gating.rule import Ahead, Expected, Reading, Rule, RuleError, gate_rule, one_of
from probes.gating.rules.behaviour import clusters_of
from probes.gating.subject import Side

_NUMERIC = ("int", "uint", "float", "double", "half", "bool", "decimal")


@gate_rule("table")
class Table(Rule):
    """The mean of a column over the rows of a table that `where` leaves: of each prompt first, then over prompts.

    A table without prompts has a plain mean over rows, and no interval.
    """

    bounds: ClassVar = ("at_most", "at_least")

    table: str
    column: str
    where: str | None = None  # a condition in SQL; with prompts, `domain` and the other columns of `prompts` too
    at_most: float | None = None
    at_least: float | None = None

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        one_of(self.table, side.run.tables, "table", side.run.path)
        columns = side.run.table(self.table).columns
        one_of(self.column, list(columns), "column", f"{side.run.path}: {self.table}")
        if not columns[self.column].startswith(_NUMERIC):
            raise RuleError(
                f"{self.table}.{self.column} holds {columns[self.column]}, not numbers; name another column"
            )
        if self.where is not None:
            side.run.sql(f"SELECT 1 FROM {self._source(side)} LIMIT 0")

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        by_prompt = "prompt_id" in side.run.table(self.table).columns
        value = f'avg("{self.column}"::DOUBLE) AS value'
        of = (
            f"prompt_id, {value} FROM {self._source(side)} GROUP BY prompt_id"
            if by_prompt
            else f"{value} FROM {self._source(side)}"
        )
        number, prompts = number_of(side, side.run.sql(f"SELECT {of}"))
        unit = _unit(self.table, self.column)
        return Reading(number, Bound(self.at_most, self.at_least), self._what, unit, prompts)

    def ahead(self, expected: Expected) -> Ahead:
        size = getattr(self, self.bound_name)
        return Ahead(
            self._what,
            _unit(self.table, self.column),
            abs(size),
            expected.prompts.unit.nunique(),
            len(expected.prompts),
            "mean",
        )

    def _source(self, side: Side) -> str:
        columns = side.run.table(self.table).columns
        joined = "" if "prompt_id" not in columns or self.table == "prompts" else " JOIN prompts USING (prompt_id)"
        name = side.tuned.replace("'", "''")
        own = [f"{key} = '{name}'" for key in ("tuned", "model") if key in columns]
        given = [] if self.where is None else [f"({self.where})"]
        conditions = " AND ".join([*own, *given, f'"{self.column}" IS NOT NULL'])
        return f'"{self.table}"{joined} WHERE {conditions}'

    @property
    def _what(self) -> str:
        return f"{self.table}.{self.column}" + (f" where {self.where}" if self.where else "")


def number_of(side: Side, found: pd.DataFrame) -> tuple[Estimate, int]:
    """An answer as a number, and how many prompts it is over. Raises RuleError where it is none."""
    numbers = pd.to_numeric(found["value"] if "prompt_id" in found else found.iloc[:, 0], errors="coerce")
    given = found[numbers.name].notna()
    if not np.isfinite(numbers[given].astype(float)).all():
        raise RuleError(f"{side.run.path}: the query answers what is no finite number; filter or CAST it")
    if "prompt_id" not in found:
        if len(found) != 1:
            raise RuleError(f"{side.run.path}: the query answers {len(found)} rows, not one number; give prompt_id too")
        return (Exact(float(numbers.iloc[0])) if given.all() else average(np.zeros(0), None)), 0
    if len(unknown := set(found.prompt_id) - set(side.prompts.index)):
        raise RuleError(f"{side.run.path}: the run has no prompt {min(map(str, unknown))!r}; select its own prompt_id")
    known = numbers[given].astype(float).groupby(found.prompt_id[given], sort=False).mean()
    values = known.to_numpy(np.float64)
    return average(values, clusters_of(side.prompts, known.index)), len(values)


def _unit(table: str, column: str) -> str:
    from probes.store.forms.declare import TABLES

    declared = {entry.name: entry for entry in TABLES[table].columns} if table in TABLES else {}
    return getattr(declared.get(column), "unit", "") or ""
