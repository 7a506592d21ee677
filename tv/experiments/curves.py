"""Behaviour along λ, between where a vector starts and where it should lead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tv.evaluation.paired import compare, summarise, tables
from tv.stats.resampling import resample_means

Floats = NDArray[np.float64]
_UNIT = ["variant", "task", "metric"]


def judge(items: pd.DataFrame, start: str, end: str, *, draws: int, seed: int) -> pd.DataFrame:
    """Every variant's mean, its difference from `end`, and the share of the way from `end` to `start` that is retained.

    Columns `variant task metric value lo hi n`, `difference difference_lo difference_hi p q test` (of the variant less
    `end`, item by item), `retained retained_lo retained_hi`: (M − M_end)/(M_start − M_end), 1 at `start`, 0 at `end`,
    NaN where the two ends cannot be told apart. Intervals are 95 % and resample items.
    """
    means = summarise(items, draws=draws, seed=seed)
    gaps = compare(items, end, draws=draws, seed=seed).drop(columns="n")
    gaps = gaps.rename(columns={"lo": "difference_lo", "hi": "difference_hi"})
    return means.merge(gaps, on=_UNIT, how="left").merge(
        _retained(items, start, end, draws, seed), on=_UNIT, how="left"
    )


def _retained(items: pd.DataFrame, start: str, end: str, draws: int, seed: int) -> pd.DataFrame:
    rows = []
    for (task, metric), table in tables(items):
        share = shares(table, start, end, draws, seed)
        for i, variant in enumerate(table):
            row = {"variant": variant, "task": task, "metric": metric, "retained": share.mean[i]}
            rows.append(row | {"retained_lo": share.lo[i], "retained_hi": share.hi[i]})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Shares:
    """What each variant retains of the way from `end` to `start`."""

    mean: Floats  # (variants,)
    drawn: Floats  # (draws, variants)

    @property
    def lo(self) -> Floats:
        """The lower ends of the 95 % intervals."""
        return quantile(self.drawn, 0.025)

    @property
    def hi(self) -> Floats:
        """The upper ends."""
        return quantile(self.drawn, 0.975)


def shares(table: pd.DataFrame, start: str, end: str, draws: int, seed: int) -> Shares:
    """Of a row an item and a column a variant. All NaN where the ends' difference may be 0 (95 % interval)."""
    values = table.to_numpy(np.float64)
    first, last = table.columns.get_loc(start), table.columns.get_loc(end)
    drawn, mean = resample_means(values, draws, seed), np.nanmean(values, 0)
    gap = drawn[:, first] - drawn[:, last]
    lo, hi = np.quantile(gap, [0.025, 0.975])
    if not (lo > 0 or hi < 0):
        return Shares(np.full_like(mean, np.nan), np.full_like(drawn, np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (drawn - drawn[:, [last]]) / gap[:, None]
    ratios[~np.isfinite(ratios)] = np.nan
    return Shares((mean - mean[last]) / (mean[first] - mean[last]), ratios)


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


def quantile(drawn: Floats, q: float) -> Floats:
    """Of every column, NaN draws left out; NaN for a column of NaN alone."""
    empty = np.isnan(drawn).all(0)
    return np.where(empty, np.nan, np.nanquantile(np.where(empty, 0.0, drawn), q, axis=0, method="nearest"))
