"""Rules on rank: whether T moves behaviour further than random vectors of its norms do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from probes.gating.estimates import Rank
from probes.gating.judging import Bound
from probes.gating.rule import Ahead, Expected, Reading, Rule, RuleError, gate_rule, in_domain, one_of, require_table
from probes.gating.subject import Side

_HOW = "attribution by graft with controls makes it: attribute: {methods: [graft], controls: [random]}"


@gate_rule("random_rank")
class RandomRank(Rule):
    """p of T's effect among those of control vectors: (1 + how many move the metric as far)/(1 + draws)."""

    bounds: ClassVar = ("p_at_most",)

    domain: str = "all"
    control: str = "random"
    p_at_most: float | None = Field(None, gt=0, le=0.5)

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        require_table(side, "control_draws", _HOW)
        rows = side.rows("control_draws", ["control", "domain"])
        one_of(self.control, list(dict.fromkeys(rows.control)), "control", side.run.path)
        one_of(self.domain, list(dict.fromkeys(rows.domain)), "domain", side.run.path)

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        where = [("control", "==", self.control), ("domain", "==", self.domain)]
        draws = side.rows("control_draws", ["metric", "effect"], where)
        whole = side.rows(
            "effects",
            ["metric", "effect"],
            [*(("granularity", "==", "all"), ("method", "==", "graft"), ("control", "==", "")), where[1]],
        )
        metric = str(draws.metric.iloc[0]) if len(draws) else ""
        whole, draws = whole[whole.metric == metric], draws[draws.metric == metric]
        what = f"p of T's effect on {metric}, {in_domain(self.domain)}, among {len(draws)} {self.control} T"
        bound = Bound(at_most=self.p_at_most)
        if whole.empty or side.unmoved or whole.effect.isna().any():
            return Reading(Rank(len(draws), len(draws)), bound, what, "probability", cannot_tell="nothing moved")
        reached = int((draws.effect.abs() >= abs(float(whole.effect.iloc[0]))).sum())
        return Reading(Rank(reached, len(draws)), bound, what, "probability")

    def ahead(self, expected: Expected) -> Ahead:
        chosen = expected.attribute or {}
        if "graft" not in chosen.get("methods", ()) or self.control not in chosen.get("controls", ()):
            raise RuleError(f"{expected.where}: the suite draws no {self.control} T; {_HOW}")
        one_of(self.domain, expected.domains, "domain", expected.where)
        draws = int(chosen.get("control_draws", 20))
        what = f"p of T's effect, {in_domain(self.domain)}, among {self.control} T"
        return Ahead(what, "probability", self.p_at_most or math.nan, draws, 0, "rank")
