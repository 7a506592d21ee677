"""Rules on a run's own checks: whether its attribution is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from probes.gating.estimates import Exact
from probes.gating.judging import Bound
from probes.gating.rule import Ahead, Expected, Reading, Rule, RuleError, gate_rule, one_of, require_table
from probes.gating.subject import Side

_ALL = "all"


@gate_rule("check")
class Check(Rule):
    """How many rows of a check of attribution do not hold; none may fail to."""

    shorthand: ClassVar = "check"

    check: str = _ALL
    method: str | None = None

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        require_table(side, "checks", "attribution makes it: add `attribute` to the suite")
        rows = side.rows("checks", ["check", "method"])
        one_of(self.check, [_ALL, *dict.fromkeys(rows.check)], "check", side.run.path)
        if self.method is not None:
            one_of(self.method, list(dict.fromkeys(rows.method)), "method", side.run.path)

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        rows = side.rows("checks", ["check", "method", "domain", "value", "bound", "holds"])
        rows = rows[rows.holds.notna()]
        if self.check != _ALL:
            rows = rows[rows.check == self.check]
        if self.method is not None:
            rows = rows[rows.method == self.method]
        broken = rows[~rows.holds.astype(bool)]
        first = next(iter(broken.to_dict("records")), None)
        note = (
            "" if first is None else f"{first['check']} {first['method']}: {first['value']:.2g} > {first['bound']:.2g}"
        )
        none = "" if len(rows) else "no row of it was measured: where nothing moved there is nothing to check"
        return Reading(Exact(float(len(broken))), Bound(at_most=0.0), self._what, "checks", 0, note, none)

    def ahead(self, expected: Expected) -> Ahead:
        if expected.attribute is None:
            raise RuleError(f"{expected.where}: the suite attributes nothing, so no check is made; add `attribute`")
        return Ahead(self._what, "checks", 0.0)

    @property
    def _what(self) -> str:
        return f"checks that do not hold ({self.check})"
