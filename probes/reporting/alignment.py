"""Is the tuning vector aligned with the pretrained subspaces beyond what matrix shape gives? In sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probes.reporting.words import SIDES, number, signed

#: |z| under the rotation null beyond which one module of one layer counts.
Z = 3.0
#: Lifts within this of 1 are too small to report, whatever their z.
SMALL = 0.05
#: Mean |SSA − null| below which the raw pattern counts as the null's.
GAP = 0.02


def alignment_sentences(alignment: pd.DataFrame, weights: pd.DataFrame) -> list[str]:
    """The fixed fraction on both sides first, then the raw SSA beside its null, then cos(W, T)."""
    if alignment.empty:
        return []
    fixed = fixed_fraction(alignment)
    if fixed.empty or fixed.ssa.max() == 0:
        return ["Undefined: nothing moved."]
    sentences = [*_lifts(fixed), *_raw(alignment)]
    cosine = weights.cos_weight_delta.dropna() if len(weights) else pd.Series(dtype=float)
    if len(cosine):
        largest = float(cosine.iloc[int(np.argmax(cosine.abs()))])
        tail = "T does not rescale W" if abs(largest) < 0.05 else "there, part of T rescales W"
        sentences.append(f"cos(W, T) is furthest from 0 at {signed(largest)}: {tail}.")
    return sentences


def fixed_fraction(alignment: pd.DataFrame) -> pd.DataFrame:
    """The rows of the leading 10 % of directions, left and right, with `lift` = SSA²/null²."""
    rows = alignment[alignment.epsilon.isna() & alignment.side.isin(["left", "right"])]
    return rows.assign(lift=rows.ssa**2 / rows.ssa_null**2)


def at_epsilon(alignment: pd.DataFrame, side: str, epsilon: float = 0.05) -> pd.DataFrame:
    """The rows of one side at one ε."""
    return alignment[np.isclose(alignment.epsilon.astype(float), epsilon) & (alignment.side == side)]


def raw_gap(alignment: pd.DataFrame) -> float:
    """Mean distance of the raw SSA (ε = 0.05, output side) from its null; NaN where it was not measured."""
    rows = at_epsilon(alignment, "left")
    return float((rows.ssa - rows.ssa_null).abs().mean()) if len(rows) else float("nan")


def _lifts(fixed: pd.DataFrame) -> list[str]:
    shown: list[str] = []
    by_outcome: dict[str, list[str]] = {"above": [], "below": [], "flat": []}
    for side, rows in fixed.groupby("side"):
        outcomes: dict[str, list[str]] = {"above": [], "below": [], "flat": []}
        lifts = []
        for module, layers in rows.groupby("module", sort=False):
            lift = float(layers.lift.mean())
            lifts.append(f"{module} {lift:.2f}")
            outcomes[_verdict_of(layers, lift)].append(str(module))
        shown.append(f"{SIDES[str(side)]} {', '.join(lifts)}")
        for outcome, names in outcomes.items():
            by_outcome[outcome] += [f"{SIDES[str(side)]} {', '.join(names)}"] if names else []
    numbers = "Energy of T in the leading 10 % of pretrained directions over its null (1 = no preferred direction): "
    numbers += "; ".join(shown) + "."
    if not (by_outcome["above"] or by_outcome["below"]):
        nothing = "That is what a T with no preferred direction gives: no alignment beyond the null on either side."
        return [numbers, nothing]
    rule = f"|z| > {Z:.0f} in most layers, and a lift more than {100 * SMALL:.0f} % from 1"
    words = {"above": "above it", "below": "below it", "flat": "not beyond it"}
    parts = [f"{word}: {'; '.join(by_outcome[name])}" for name, word in words.items() if by_outcome[name]]
    return [numbers, f"Beyond the rotation null ({rule}) — {' — '.join(parts)}."]


def _verdict_of(layers: pd.DataFrame, lift: float) -> str:
    """Whether one module's layers, on one side, are mostly above the null, below it, or at it."""
    far = (layers.ssa_z.abs() > Z) & (np.sign(layers.lift - 1) == np.sign(lift - 1))
    if abs(lift - 1) <= SMALL or far.sum() <= len(layers) / 2:
        return "flat"
    return "above" if lift > 1 else "below"


def _raw(alignment: pd.DataFrame) -> list[str]:
    rows = at_epsilon(alignment, "left")
    if rows.empty:
        return []
    kinds = rows.groupby("module")[["ssa", "ssa_null"]].mean().sort_values("ssa")
    gap, mean = raw_gap(alignment), float((rows.ssa - rows.ssa_null).mean())
    low, high = kinds.iloc[0], kinds.iloc[-1]
    span = (
        f"Raw SSA (ε = 0.05, output side) runs from {number(low.ssa)} ({kinds.index[0]}, null {number(low.ssa_null)}) "
        f"to {number(high.ssa)} ({kinds.index[-1]}, null {number(high.ssa_null)})"
    )
    ceiling = int(rows.at_ceiling.astype(bool).sum())
    room = f"; {ceiling} of {len(rows)} modules have no room above their null" if ceiling else ""
    if gap < GAP:
        end = f"SSA equals its null (mean distance {number(gap, 2)}): this raw pattern only draws matrix shape"
    else:
        where = "above" if mean > 0 else "below"
        end = f"it lies {number(abs(mean))} {where} its null on average: more than matrix shape"
    return [f"{span}; {end}{room}."]
