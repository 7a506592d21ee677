"""Rules on how far the tuned model's predictions lie from the base's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from probes.gating.estimates import Exact, average
from probes.gating.judging import Bound
from probes.gating.rule import Ahead, Expected, Reading, Rule, RuleError, gate_rule, in_domain, one_of, require_table
from probes.gating.rules.behaviour import clusters_of
from probes.gating.subject import Side


@gate_rule("kl")
class Kl(Rule):
    """KL(base ‖ tuned) over the whole vocabulary: a mean over a prompt's places, then over the prompts of a domain."""

    bounds: ClassVar = ("at_most", "at_least")

    domain: str = "all"
    at: Literal["text", "answer"] = (
        "text"  # every place but what a template puts first, or those that predict the target
    )
    at_most: float | None = Field(None, ge=0)
    at_least: float | None = Field(None, ge=0)

    @property
    def from_zero(self) -> bool:
        return self.at_most is not None

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        if self.at == "answer" or "divergences" not in side.run.tables:
            require_table(
                side, "tokens" if self.at == "text" else "behaviour", "run its suite with the stage `capture`"
            )
        one_of(self.domain, side.domains, "domain", side.run.path)
        if self.at == "answer" and not len(side.behaviour("kl", side.tuned)):
            raise RuleError(f"{side.run.path}: no prompt has a KL at its answer; use at: text")

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        prompts = side.of_domain(self.domain)
        values = self._values(side)
        values = values[values.index.isin(prompts.index)]
        number = average(values.to_numpy(np.float64), clusters_of(prompts, values.index))
        floor = side.floor("kl", self.domain) if self.at == "answer" else 0.0
        what = f"KL(base ‖ tuned), {in_domain(self.domain)}, {self.at}"
        unit = "nats per token"
        bound = Bound(self.at_most, self.at_least, floor)
        return Reading(Exact(0.0) if side.unmoved else number, bound, what, unit, len(values), still=side.unmoved)

    def ahead(self, expected: Expected) -> Ahead:
        one_of(self.domain, expected.domains, "domain", expected.where)
        prompts = expected.of_domain(self.domain)
        if self.at == "answer":
            prompts = prompts[prompts.target != ""]
        what = f"KL(base ‖ tuned), {in_domain(self.domain)}, {self.at}"
        size = getattr(self, self.bound_name)
        return Ahead(what, "nats per token", size, prompts.unit.nunique(), len(prompts), "mean")

    def _values(self, side: Side) -> pd.Series:
        if self.at == "answer":
            return side.behaviour("kl", side.tuned)
        if "tokens" not in side.run.tables:  # a discovery keeps the mean of each text
            return side.rows("divergences", ["prompt_id", "kl"]).set_index("prompt_id").kl.dropna()
        rows = side.rows("tokens", ["prompt_id", "role", "kl"])
        rows = rows[(rows.role != "template") & rows.kl.notna()]
        return rows.groupby("prompt_id", sort=False).kl.mean()
