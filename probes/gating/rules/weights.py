"""Rules on where T lies: exact numbers of the weights, without sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pandas as pd
from pydantic import Field, model_validator

from probes.gating.estimates import Exact
from probes.gating.judging import Bound
from probes.gating.rule import Ahead, Expected, Reading, Rule, RuleError, gate_rule, one_of, require_table
from probes.gating.subject import Side


@gate_rule("weights")
class Weights(Rule):
    """The share of ‖T‖² that lies in some modules or layers, or how far these moved: ‖T‖/‖W‖ over all of them."""

    bounds: ClassVar = ("share_of_T_at_most", "share_of_T_at_least", "relative_norm_at_most")

    modules: tuple[str, ...] = ()  # all without it
    layers: tuple[int, ...] = ()
    share_of_T_at_most: float | None = Field(None, ge=0, le=1)
    share_of_T_at_least: float | None = Field(None, ge=0, le=1)
    relative_norm_at_most: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _names_a_part(self) -> Weights:
        if self.bound_name.startswith("share") and not self.modules and not self.layers:
            raise ValueError("a share of T is that of some modules or layers; give modules, layers or both")
        return self

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        require_table(side, "weights", "run its suite with the stage `weights`")
        rows = _rows(side)
        for module in self.modules:
            one_of(module, sorted(set(rows.module)), "module", side.run.path)
        for layer in self.layers:
            if layer not in set(rows.layer):
                raise RuleError(
                    f"{side.run.path}: no layer {layer}; there are {rows.layer.min()} to {rows.layer.max()}"
                )

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        rows = _rows(side)
        within = rows
        if self.modules:
            within = within[within.module.isin(self.modules)]
        if self.layers:
            within = within[within.layer.isin(self.layers)]
        moved = float((rows.delta_norm**2).sum())
        energy = float((within.delta_norm**2).sum())
        if self.relative_norm_at_most is not None:
            size = float((within.weight_norm**2).sum())
            value, bound = (energy / size) ** 0.5 if size else 0.0, Bound(self.relative_norm_at_most)
        else:
            value, bound = energy / moved if moved else 0.0, Bound(self.share_of_T_at_most, self.share_of_T_at_least)
        return Reading(Exact(value), bound, self._what, self._unit, still=not moved)

    def ahead(self, expected: Expected) -> Ahead:
        return Ahead(self._what, self._unit, getattr(self, self.bound_name))

    @property
    def _what(self) -> str:
        parts = [*self.modules, *(f"layer {layer}" for layer in self.layers)]
        where = ", ".join(parts) or "all modules"
        return f"‖T‖/‖W‖ of {where}" if self.relative_norm_at_most is not None else f"share of T in {where}"

    @property
    def _unit(self) -> str:
        return "ratio" if self.relative_norm_at_most is not None else "share of ‖T‖²"


def _rows(side: Side) -> pd.DataFrame:
    """Every parameter of the model once."""
    where = [("head", "==", -1), ("tied", "==", False)]
    rows = side.rows("weights", ["layer", "module", "weight_norm", "delta_norm"], where)
    return rows.astype({"weight_norm": float, "delta_norm": float})
