"""Questions 1 and 2: how far the weights moved, and where T lies among the pretrained directions."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studies.real_models.answers.shown import MODULES, Tables, kinds, signed, spread
from studies.real_models.reading import RANDOM

#: The source's rule: a share of the spectrum that 5 % of the norm is left out of.
EPSILON = 0.05


def similarity(tables: Tables) -> pd.DataFrame:
    """How far whole models moved, and what bfloat16 makes of it: a row a model and method, ranges over fine-tunes."""
    weights = tables["weights"]
    weights = weights.assign(kept=weights.changed_fraction_bf16 * weights.numbers)
    rows = []
    rounding = kinds(tables["rounding"]).assign(share=lambda t: t.noise / t.moved)
    for (model, kind), group in kinds(weights).groupby(["model", "kind"], sort=False):
        saved = rounding[(rounding.model == model) & (rounding.kind == kind)].share
        sums = group.groupby(["tuned", "seed"])[["kept", "numbers"]].sum()
        rows.append(
            {
                "model": model,
                "tuned": kind,
                "fine-tunes": len(sums),
                "‖T‖/‖W‖, %": spread(100 * moved(group)),
                "1 − lowest cosine of a matrix": f"{group.apart.max():.1e}".replace("-", "−"),
                "numbers that differ once saved in bfloat16, %": spread(100 * sums.kept / sums.numbers, 1),
                "what saving there changes, % of ‖T‖²": spread(100 * saved, 0),
            }
        )
    return pd.DataFrame(rows)


def moved(weights: pd.DataFrame) -> pd.Series:
    """‖T‖/‖W‖ of whole models, from the norms of their matrices, by fine-tune."""
    squares = weights.assign(t=weights.delta_norm**2, w=weights.weight_norm**2)
    sums = squares.groupby(["tuned", "seed"])[["t", "w"]].sum()
    return np.sqrt(sums.t / sums.w)


def subspaces(tables: Tables) -> pd.DataFrame:
    """SSA at the source's ε beside its null, and κ; a row a model, module and side, means over full fine-tunes."""
    at = at_epsilon(tables["alignment"])
    rows = []
    for (model, module, side), group in at[at.kind == "full"].groupby(["model", "module", "side"], sort=False):
        if side == "two_sided":
            continue
        random = at[(at.kind == RANDOM) & (at.model == model) & (at.module == module) & (at.side == side)]
        rows.append(
            {
                "model": model,
                "module": module,
                "side": side,
                "SSA": f"{group.ssa.mean():.3f}",
                "null": f"{group.ssa_null.mean():.3f}",
                "random T": f"{random.ssa.mean():.3f}",
                "κ": spread(group.kappa, 3),
                "layers above / below the null": f"{group.above.sum()} / {group.below.sum()} of {group.layers.sum()}",
            }
        )
    return pd.DataFrame(rows)


def orderings(tables: Tables) -> pd.DataFrame:
    """The source's ordering of modules by SSA, and what is left of it without the null: a row a model and rule.

    On the output side; κ is 0 where SSA is its null's and 1 where T lies in the directions.
    """
    table = kinds(tables["alignment"])
    left = table[(table.side == "left") & table.module.isin(MODULES)]
    rows = []
    for (model, rule, level), group in left[left.kind == "full"].groupby(["model", "k_rule", "level"], sort=False):
        of = group.groupby("module")[["ssa", "ssa_null", "kappa"]].mean()
        row = {"model": model, "directions": f"ε = {level:g}" if rule == "tail" else f"{100 * level:g} % of them"}
        for said, column in (("by SSA", "ssa"), ("by its null", "ssa_null"), ("by κ", "kappa")):
            row[said] = " > ".join(of[column].sort_values(ascending=False).index)
        row["ρ of SSA and null"] = _rank(of.ssa, of.ssa_null)
        row["ρ of κ and null"] = _rank(of.kappa, of.ssa_null)
        rows.append(row)
    return pd.DataFrame(rows)


def _rank(one: pd.Series, other: pd.Series) -> str:
    """Spearman's ρ over modules; none where the null is the same for all."""
    return "–" if other.nunique() < 3 else signed(one.corr(other, method="spearman"), 2)


def at_epsilon(alignment: pd.DataFrame) -> pd.DataFrame:
    return kinds(alignment[(alignment.k_rule == "tail") & (alignment.level == EPSILON)])
