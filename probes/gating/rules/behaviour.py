"""Rules on behaviour: a metric of the tuned model, or how far it moved from the base or from another tuned model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from probes.gating.estimates import Estimate, Exact, average, moved_share, share
from probes.gating.judging import Bound
from probes.gating.rule import Ahead, Expected, Reading, Rule, RuleError, gate_rule, in_domain, one_of, require_table
from probes.gating.subject import BASE, Side
from probes.reporting.words import METRICS, is_share
from tv.prompts.metric import METRICS as REGISTERED

_CHANGES = ("worse_by_at_most", "better_by_at_least", "changes_by_at_most")


@gate_rule("behaviour")
class Behaviour(Rule):
    """A metric of behaviour on the prompts of a domain."""

    bounds: ClassVar = (*_CHANGES, "at_most", "at_least")

    metric: str
    domain: str = "all"
    against: str = BASE  # the base, or another tuned model
    worse_by_at_most: float | None = Field(None, ge=0)
    better_by_at_least: float | None = Field(None, ge=0)
    changes_by_at_most: float | None = Field(None, gt=0)
    at_most: float | None = None  # of the tuned model's own mean
    at_least: float | None = None

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        for one in self._both(side, sides):
            require_table(one, "behaviour", "add behaviour to its suite's `measure`")
            one_of(self.domain, one.domains, "domain", one.run.path)
            models = [one.tuned] if one is not side or self.against != BASE else [one.tuned, BASE]
            where = [("model", "in", models if self._is_change else [one.tuned])]
            there = one.run.df("behaviour", columns=["model", "metric"], where=where)
            by_all = there.drop_duplicates().groupby("metric").size()
            one_of(self.metric, list(by_all[by_all == len(where[0][2])].index), "metric", one.run.path)
        self._known_direction()

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        prompts = side.of_domain(self.domain)
        after = side.behaviour(self.metric, side.tuned)
        after = after[after.index.isin(prompts.index)]
        words, unit, _ = METRICS.get(self.metric, (self.metric, "", None))
        where = f"{words}, {in_domain(self.domain)}"
        if not self._is_change:
            values, clusters = after.to_numpy(np.float64), clusters_of(prompts, after.index)
            number: Estimate = share(values, clusters) if _binary(self.metric, values) else average(values, clusters)
            return Reading(number, Bound(self.at_most, self.at_least), where, unit, len(values))
        before = self._before(side, sides, prompts)
        asked = after.index.intersection(before.index, sort=False)
        a, b, clusters = before[asked].to_numpy(float), after[asked].to_numpy(float), clusters_of(prompts, asked)
        sign = self._sign()
        still = self.against == BASE and side.unmoved
        number = Exact(0.0) if still else _moved(self.metric, a, b, sign, clusters)
        note = "" if len(asked) or not len(after) else "no prompt is in both runs"
        compared = "" if self.against == BASE else f" than {self.against}" if sign else f" from {self.against}"
        return Reading(
            number,
            self._bound(side.floor(self.metric, self.domain)),
            f"{where}: {self._word}{compared} by",
            unit,
            len(asked),
            note,
            still=still,
        )

    def ahead(self, expected: Expected) -> Ahead:
        if "behaviour" not in expected.measure:
            raise RuleError(f"{expected.where}: the suite does not measure behaviour; add it to `measure`")
        one_of(self.domain, expected.domains, "domain", expected.where)
        one_of(self.metric, METRICS, "metric", expected.where)
        self._known_direction()
        prompts = expected.of_domain(self.domain)
        if self.metric in REGISTERED and REGISTERED[self.metric].needs != "text":
            prompts = prompts[prompts[REGISTERED[self.metric].needs] != ""]
        words, unit, _ = METRICS[self.metric]
        what = f"{words}, {in_domain(self.domain)}" + (f": {self._word} by" if self._is_change else "")
        kind = "share" if is_share(self.metric) and self.metric != "token_accuracy" else "mean"
        return Ahead(what, unit, abs(getattr(self, self.bound_name)), prompts.unit.nunique(), len(prompts), kind)

    @property
    def _is_change(self) -> bool:
        return self.bound_name in _CHANGES

    @property
    def _word(self) -> str:
        return self.bound_name.partition("_")[0]

    def _known_direction(self) -> None:
        if self.bound_name in _CHANGES[:2] and METRICS.get(self.metric, ("", "", None))[2] is None:
            raise RuleError(
                f"metric {self.metric!r}: neither more nor less of it is better; use changes_by_at_most, at_most or "
                "at_least"
            )

    def _both(self, side: Side, sides: Mapping[str, Side]) -> list[Side]:
        if self.against == BASE:
            return [side]
        if not self._is_change:
            raise RuleError(f"against: {self.against} is for changes; {self.bound_name} is of one model alone")
        one_of(self.against, [BASE, *sides], "tuned model", side.run.path)
        return [side, sides[self.against]]

    def _before(self, side: Side, sides: Mapping[str, Side], prompts: pd.DataFrame) -> pd.Series:
        """The metric of what it is compared with, by this side's prompt_id."""
        if self.against == BASE:
            return side.behaviour(self.metric, BASE)
        other = sides[self.against]
        ids = prompts.index.to_series().set_axis(prompts.same)
        values = other.behaviour(self.metric, other.tuned)
        asked = other.prompts.same.reindex(values.index)
        known = asked.isin(ids.index)
        return values[known].set_axis(ids.loc[asked[known]])

    def _sign(self) -> int:
        """1 where more of the metric is more of what the rule speaks of, −1 where less is; 0: both."""
        if self.bound_name == "changes_by_at_most":
            return 0
        better = METRICS[self.metric][2]
        return 1 if better is (self.bound_name == "better_by_at_least") else -1

    def _bound(self, floor: float) -> Bound:
        if self.changes_by_at_most is not None:
            return Bound(self.changes_by_at_most, -self.changes_by_at_most, floor)
        return Bound(self.worse_by_at_most, self.better_by_at_least, floor)


def clusters_of(prompts: pd.DataFrame, ids: pd.Index) -> list[str] | None:
    """The cluster of each prompt; None where every one is its own."""
    named = prompts.unit.reindex(ids)
    return None if named.nunique() == len(named) else named.tolist()


def _moved(metric: str, before: np.ndarray, after: np.ndarray, sign: int, clusters: list[str] | None) -> Estimate:
    first, then = (after, before) if sign < 0 else (before, after)
    if _binary(metric, np.concatenate([before, after])):
        return moved_share(first, then, clusters)
    return average(then - first, clusters) if len(after) else average(np.zeros(0), None)


def _binary(metric: str, values: np.ndarray) -> bool:
    return is_share(metric) and bool(np.isin(values, (0, 1)).all())
