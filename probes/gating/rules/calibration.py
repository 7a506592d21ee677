"""Rules on calibration: whether a model is as sure of its choice between target and foil as it is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from probes.gating.estimates import Exact, average
from probes.gating.judging import Bound
from probes.gating.rule import Ahead, Expected, Reading, Rule, RuleError, gate_rule, in_domain, one_of, require_table
from probes.gating.rules.behaviour import clusters_of
from probes.gating.subject import BASE, Side

_METRIC = "logit_diff"
_NEEDS = "calibration is of the choice between target and foil; give the prompts a foil and measure behaviour"


@gate_rule("calibration")
class Calibration(Rule):
    """The choice between target and foil, p = σ(logit difference): surer than right, or a worse Brier score.

    An expected calibration error of bins is no such number: of 48 prompts it is far above 0 for a perfect model.
    """

    bounds: ClassVar = ("overconfident_by_at_most", "brier_at_most", "brier_worse_by_at_most")

    domain: str = "all"
    overconfident_by_at_most: float | None = Field(None, ge=0, le=1)  # mean max(p, 1 − p), less the share that is right
    brier_at_most: float | None = Field(None, ge=0, le=1)  # mean (1 − p)²
    brier_worse_by_at_most: float | None = Field(None, ge=0, le=1)  # than the base's

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        require_table(side, "behaviour", _NEEDS)
        one_of(self.domain, side.domains, "domain", side.run.path)
        if not side.behaviour(_METRIC, side.tuned).index.isin(side.of_domain(self.domain).index).any():
            raise RuleError(f"{side.run.path}: no prompt of {in_domain(self.domain)} has a foil; {_NEEDS}")

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        prompts = side.of_domain(self.domain)
        chosen = side.behaviour(_METRIC, side.tuned)
        chosen = chosen[chosen.index.isin(prompts.index)]
        p = _sure(chosen.to_numpy(np.float64))
        still, what, unit = False, self._what, "squared probability"
        if self.overconfident_by_at_most is not None:
            values, bound, unit = np.maximum(p, 1 - p) - (p > 0.5), Bound(self.overconfident_by_at_most), "probability"
        elif self.brier_at_most is not None:
            values, bound = (1 - p) ** 2, Bound(self.brier_at_most)
        else:
            before = _sure(side.behaviour(_METRIC, BASE).reindex(chosen.index).to_numpy(np.float64))
            values, bound, still = (1 - p) ** 2 - (1 - before) ** 2, Bound(self.brier_worse_by_at_most), side.unmoved
        number = average(values, clusters_of(prompts, chosen.index))
        return Reading(Exact(0.0) if still else number, bound, what, unit, len(chosen), still=still)

    def ahead(self, expected: Expected) -> Ahead:
        one_of(self.domain, expected.domains, "domain", expected.where)
        prompts = expected.of_domain(self.domain)
        prompts = prompts[prompts.foil != ""]
        if "behaviour" not in expected.measure or not len(prompts):
            raise RuleError(f"{expected.where}: {_NEEDS}")
        unit = "probability" if self.overconfident_by_at_most is not None else "squared probability"
        size = getattr(self, self.bound_name)
        return Ahead(self._what, unit, size, prompts.unit.nunique(), len(prompts), "mean")

    @property
    def _what(self) -> str:
        name = {
            "overconfident_by_at_most": "surer of its choice than right, by",
            "brier_at_most": "Brier score of the choice",
            "brier_worse_by_at_most": "Brier score of the choice: worse by",
        }[self.bound_name]
        return f"{in_domain(self.domain)}: {name}"


def _sure(logit_diff: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logit_diff, -60, 60)))
