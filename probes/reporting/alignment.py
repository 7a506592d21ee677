"""Is the tuning vector aligned with the pretrained subspaces beyond what matrix shape gives? In sentences.

Every sentence that claims something does so from one family of p values: of each module's z, pooled over its layers, at
10 % of the directions on both sides and of the raw SSA; of each matrix by itself; and of cos(W, T).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from probes.reporting.words import SIDES, listing, number, signed
from tv.stats.families import holm
from tv.stats.means import Floats
from tv.stats.pooling import normal_scores, pooled, two_sided

#: A claim stands below this p, corrected for everything that is tested.
CLAIMED = 0.05
#: Lifts within this of 1 are too small to report, whatever their z.
SMALL = 0.05
#: |SSA − null| below which a difference from the null is too small to report.
GAP = 0.02
#: |cos(W, T)| below which T does not rescale W in any way that matters.
RESCALES = 0.05
#: Standard errors on either side of a mean: the 90 % interval of two one-sided tests at 5 %.
_EQUAL = 1.645
#: Matrices that are named one by one.
_NAMED = 3


def alignment_sentences(alignment: pd.DataFrame, weights: pd.DataFrame) -> list[str]:
    """The fixed fraction on both sides first, then the raw SSA beside its null, then cos(W, T)."""
    if alignment.empty:
        return []
    fixed, raw = fixed_fraction(alignment).dropna(subset="ssa"), at_epsilon(alignment, "left").dropna(subset="ssa")
    if fixed.empty and raw.empty:
        return ["Undefined: no matrix that this is measured of moved."]
    modules = pd.concat([_by_module(fixed, "fixed"), _by_module(raw, "raw")])
    matrices, cosines = _by_matrix(raw), _cosines(weights)
    family = [modules, matrices, cosines]
    claimed = holm(np.concatenate([two_sided(rows.z.to_numpy(np.float64)) for rows in family])) < CLAIMED
    for rows, stands in zip(family, np.split(claimed, np.cumsum([len(rows) for rows in family[:-1]])), strict=True):
        rows["claimed"] = stands & rows.matters.to_numpy(bool)
    of_raw = modules[modules["from"] == "raw"]
    by_themselves = ~matrices.module.isin(of_raw.module[of_raw.claimed])  # not those of a module that is said to
    return [
        *_lifts(modules[modules["from"] == "fixed"]),
        *_raw(of_raw, raw),
        *_outliers(matrices[by_themselves]),
        *_rescaling(cosines),
    ]


def fixed_fraction(alignment: pd.DataFrame) -> pd.DataFrame:
    """The rows of the leading 10 % of directions, left and right, with `lift` = SSA²/null²."""
    rows = alignment[alignment.epsilon.isna() & alignment.side.isin(["left", "right"])]
    return rows.assign(lift=rows.ssa**2 / rows.ssa_null**2)


def at_epsilon(alignment: pd.DataFrame, side: str, epsilon: float = 0.05) -> pd.DataFrame:
    """The rows of one side at one ε."""
    return alignment[np.isclose(alignment.epsilon.astype(float), epsilon) & (alignment.side == side)]


def raw_gap(alignment: pd.DataFrame) -> float:
    """Mean distance of the raw SSA (ε = 0.05, output side) from its null over what moved; NaN where there is none."""
    rows = at_epsilon(alignment, "left")
    return float((rows.ssa - rows.ssa_null).abs().mean()) if len(rows) else float("nan")


def _scores(rows: pd.DataFrame) -> Floats:
    columns = (rows[name].astype(np.float64) for name in ("ssa", "ssa_null", "ssa_z"))
    ssa, null, z = columns
    return normal_scores(ssa**2, null**2, z)


def _by_module(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row per side and module: means over the layers that moved, z pooled over them, `se` of SSA under the null."""
    found = []
    for (side, module), layers in rows.assign(score=_scores(rows)).groupby(["side", "module"], sort=False):
        gap = layers.ssa - layers.ssa_null
        deviation = (gap / layers.ssa_z).where(layers.ssa_z != 0, 0.0)  # of SSA itself, to first order
        row = {"from": name, "side": side, "module": module, "z": pooled(layers.score), "gap": float(gap.mean())}
        row |= {"ssa": float(layers.ssa.mean()), "ssa_null": float(layers.ssa_null.mean())}
        row |= {"lift": float((layers.ssa**2 / layers.ssa_null**2).mean())}
        row |= {"se": float(np.sqrt((deviation**2).sum()) / len(layers))}
        row["matters"] = abs(row["lift"] - 1) > SMALL if name == "fixed" else abs(row["gap"]) > GAP
        found.append(row)
    columns = ["from", "side", "module", "z", "gap", "ssa", "ssa_null", "lift", "se", "matters"]
    return pd.DataFrame(found, columns=columns)


def _by_matrix(raw: pd.DataFrame) -> pd.DataFrame:
    """Every matrix by itself."""
    return raw.assign(z=_scores(raw), matters=(raw.ssa - raw.ssa_null).abs() > GAP)


def _cosines(weights: pd.DataFrame) -> pd.DataFrame:
    """cos(W, T) of every matrix; of a T turned at random its deviation is 1/√(mn)."""
    if weights.empty:
        return pd.DataFrame(columns=["cos_weight_delta", "z", "matters"])
    rows = weights.dropna(subset="cos_weight_delta")
    z = rows.cos_weight_delta * np.sqrt(rows["rows"].astype(float) * rows.cols)
    return rows.assign(z=z, matters=rows.cos_weight_delta.abs() >= RESCALES)


def _lifts(modules: pd.DataFrame) -> list[str]:
    if modules.empty:
        return []
    shown: list[str] = []
    by_outcome: dict[str, list[str]] = {"above": [], "below": [], "not distinguishable from": []}
    for side, rows in modules.groupby("side"):
        shown.append(f"{SIDES[str(side)]} " + ", ".join(f"{row.module} {row.lift:.2f}" for row in rows.itertuples()))
        outcome = np.where(rows.claimed, np.where(rows.lift > 1, "above", "below"), "not distinguishable from")
        for word, some in rows.groupby(outcome):
            told = [f"{row.module}{f' (z = {_z(row.z)})' if row.claimed else ''}" for row in some.itertuples()]
            by_outcome[str(word)].append(f"{SIDES[str(side)]} {', '.join(told)}")
    numbers = "Energy of T in the leading 10 % of pretrained directions over its null (1 = no preferred direction): "
    numbers += "; ".join(shown) + "."
    if not modules.claimed.any():
        return [numbers, "On neither side is it distinguishable from a T with no preferred direction."]
    rule = f"z pooled over layers, p < {CLAIMED:g} after Holm, and a lift more than {100 * SMALL:.0f} % from 1"
    parts = [f"{word} it: {'; '.join(told)}" for word, told in by_outcome.items() if told]
    return [numbers, f"Against the rotation null ({rule}) — {' — '.join(parts)}."]


def _raw(modules: pd.DataFrame, raw: pd.DataFrame) -> list[str]:
    if modules.empty:
        return []
    kinds = modules.sort_values("ssa")
    low, high = kinds.iloc[0], kinds.iloc[-1]
    span = (
        f"Raw SSA (ε = 0.05, output side) runs from {number(low.ssa)} ({low.module}, null {number(low.ssa_null)}) "
        f"to {number(high.ssa)} ({high.module}, null {number(high.ssa_null)})"
    )
    beyond = kinds[kinds.claimed]
    if len(beyond):
        told = [
            f"{row.module} lies {'above' if row.gap > 0 else 'below'} its null ({number(row.ssa)} against "
            f"{number(row.ssa_null)}, z = {_z(row.z)})"
            for row in beyond.itertuples()
        ]
        end = f"{listing(told)}: more than matrix shape"
    elif ((kinds.gap.abs() + _EQUAL * kinds.se) < GAP).all():
        end = (
            f"SSA equals its null to within {GAP:g} in the mean of every module (mean distance "
            f"{number(kinds.gap.abs().mean(), 2)}): this raw pattern only reflects matrix shape"
        )
    else:
        end = f"no module is distinguishable from its null (mean distance {number(kinds.gap.abs().mean(), 2)})"
    ceiling = int(raw.at_ceiling.astype(bool).sum())
    room = f"; {ceiling} of {len(raw)} matrices have no room above their null, only below" if ceiling else ""
    return [f"{span}; {end}{room}."]


def _outliers(matrices: pd.DataFrame) -> list[str]:
    """Single matrices that lie beyond their null by themselves, furthest first."""
    beyond = matrices[matrices.claimed]
    if beyond.empty:
        return []
    first = beyond.loc[beyond.z.abs().sort_values(ascending=False, kind="stable").index].head(_NAMED)
    told = [
        f"{row.module} {row.layer} ({number(row.ssa)} against {number(row.ssa_null)}, z = {_z(row.ssa_z)})"
        for row in first.itertuples()
    ]
    which = f"{len(beyond)} of {len(matrices)} matrices, {'first ' if len(beyond) > _NAMED else ''}{listing(told)}"
    return [f"Single matrices clear of their null: {which}."]


def _rescaling(cosines: pd.DataFrame) -> list[str]:
    if cosines.empty:
        return []
    rows = cosines[cosines.claimed] if cosines.claimed.any() else cosines
    largest = float(rows.cos_weight_delta.iloc[int(np.argmax(rows.cos_weight_delta.abs()))])
    if cosines.claimed.any():
        tail = "there, part of T rescales W"
    else:
        tail = "T does not rescale W" if abs(largest) < RESCALES else "no more than a randomly rotated T may reach"
    return [f"cos(W, T) is furthest from 0 at {signed(largest)}: {tail}."]


def _z(value: float) -> str:
    return number(value, 2)
