"""Rules on whatever SQL can ask of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from probes.gating.judging import Bound
from probes.gating.rule import Ahead, Expected, Reading, Rule, RuleError, gate_rule
from probes.gating.rules.table import number_of
from probes.gating.subject import Side


@gate_rule("sql")
class Sql(Rule):
    """What a SELECT answers: rows of `prompt_id, value`, or one number without an interval.

    `$tuned` in it stands for the name of the tuned model that is judged.
    """

    bounds: ClassVar = ("at_most", "at_least")

    query: str
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        if self.tuned is None and "$tuned" not in self.query and len(side.run.manifest["suite"]["tuned"]) > 1:
            raise RuleError("the run has several tuned models; ask for `tuned = $tuned`, or name one by the key tuned")
        found = side.run.sql(f"SELECT * FROM ({self._query(side)}) LIMIT 1")
        if list(found.columns) != ["prompt_id", "value"] and found.shape[1] != 1:
            raise RuleError(
                f"sql: the answer has the columns {', '.join(found.columns)}; ask for prompt_id and value, or for one "
                "number"
            )

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        number, prompts = number_of(side, side.run.sql(self._query(side)))
        return Reading(number, Bound(self.at_most, self.at_least), self.query, self.unit, prompts)

    def ahead(self, expected: Expected) -> Ahead:
        return Ahead(
            self.query,
            self.unit,
            abs(getattr(self, self.bound_name)),
            expected.prompts.unit.nunique(),
            len(expected.prompts),
            "mean",
        )

    def _query(self, side: Side) -> str:
        name = side.tuned.replace("'", "''")
        return self.query.strip().removesuffix(";").replace("$tuned", f"'{name}'") + "\n"  # it may end in a comment
