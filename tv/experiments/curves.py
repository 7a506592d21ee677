"""Behaviour along λ, between where a vector starts and where it should lead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tv.evaluation.paired import compare, difference, summarise, tables
from tv.stats.resampling import ends, resample_means

Floats = NDArray[np.float64]
_UNIT = ["variant", "task", "metric"]


def judge(items: pd.DataFrame, start: str, end: str, *, draws: int, seed: int) -> pd.DataFrame:
    """Every variant's mean, its difference from `end`, and the share of the way from `end` to `start` that is retained.

    Columns `variant task metric value lo hi n clusters`, `difference difference_lo difference_hi p test least_p q` (of
    the variant less `end`, item by item), `p_start` (of no difference from `start`), `retained retained_lo
    retained_hi`: (M − M_end)/(M_start − M_end), 1 at `start`, 0 at `end`, NaN where the two ends do not differ clearly.
    Intervals are 95 %; those of what is retained resample items, or clusters of them.
    """
    means = summarise(items)
    gaps = compare(items, end).drop(columns="n").rename(columns={"lo": "difference_lo", "hi": "difference_hi"})
    moved = compare(items, start)[[*_UNIT, "p"]].rename(columns={"p": "p_start"})
    kept = _retained(items, start, end, draws, seed)
    for more in (gaps, moved, kept):
        means = means.merge(more, on=_UNIT, how="left")
    return means


def _retained(items: pd.DataFrame, start: str, end: str, draws: int, seed: int) -> pd.DataFrame:
    rows = []
    for (task, metric), table, clusters in tables(items):
        share = shares(table, clusters, start, end, draws, seed)
        for i, variant in enumerate(table):
            row = {"variant": variant, "task": task, "metric": metric, "retained": share.mean[i]}
            rows.append(row | {"retained_lo": share.lo[i], "retained_hi": share.hi[i]})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Shares:
    """What each variant retains of the way from `end` to `start`."""

    mean: Floats  # (variants,)
    lo: Floats  # (variants,)
    hi: Floats  # (variants,)
    drawn: Floats  # (draws, variants)


def shares(table: pd.DataFrame, clusters: list[str], start: str, end: str, draws: int, seed: int) -> Shares:
    """Of a row an item and a column a variant. All NaN where the ends may be alike (p of their difference ≥ 0.05)."""
    values = table.to_numpy(np.float64)
    first, last = table.columns.get_loc(start), table.columns.get_loc(end)
    drawn, mean = resample_means(values, draws, seed, clusters), np.nanmean(values, 0)
    if not difference(table[end], table[start], clusters).p < 0.05:
        nothing = np.full_like(mean, np.nan)
        return Shares(nothing, nothing, nothing, np.full_like(drawn, np.nan))
    gap = drawn[:, first] - drawn[:, last]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (drawn - drawn[:, [last]]) / gap[:, None]
    ratios[~np.isfinite(ratios)] = np.nan
    return Shares((mean - mean[last]) / (mean[first] - mean[last]), *ends(ratios, len(set(clusters))), ratios)


def half(scales: Floats, retained: Floats) -> Floats:
    """The first λ at which one half is retained, by linear interpolation; of (…, points), inf where there is none.

    `scales` ascend. Where the curve starts below one half it is its first λ.
    """
    below = retained <= 0.5
    at = below.argmax(-1)
    before = np.maximum(at - 1, 0)
    low, high = (np.take_along_axis(retained, i[..., None], -1)[..., 0] for i in (at, before))
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(high > low, (high - 0.5) / (high - low), 1.0)
    crossing = scales[before] + part * (scales[at] - scales[before])
    missing = ~below.any(-1) | np.isnan(retained).any(-1)
    return np.where(missing, np.where(np.isnan(retained).any(-1), np.nan, np.inf), crossing)


def area(scales: Floats, retained: Floats) -> Floats:
    """The mean of what is retained over 0 ≤ λ ≤ 1, of (…, points): ½ where behaviour falls linearly with λ."""
    inside = (scales >= 0) & (scales <= 1)
    return np.asarray(np.trapezoid(retained[..., inside], scales[inside], axis=-1))
