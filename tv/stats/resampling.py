"""Resampled prompts, all units of one draw together: for what has no formula of its own."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tv.stats.means import FEWEST

Floats = NDArray[np.float64]


def bootstrap_mean(
    values: ArrayLike, draws: int, seed: int, clusters: Sequence[str] | None = None
) -> tuple[Floats, Floats, Floats]:
    """(mean, lo, hi) over prompts, with the 95 % percentile interval of `draws` paired resamples of prompts.

    `values` is (prompts,) or (prompts, units); results are 0-d or (units,). NaN is a prompt without a value in that
    unit, and is left out of it; a unit without any value is NaN. The same resamples serve all units, and every call
    with as many prompts and the same seed. `clusters` names each prompt's cluster; clusters are drawn whole.
    """
    table = np.asarray(values, np.float64)
    flat = table[:, None] if table.ndim == 1 else table
    lo, hi = _interval(resample_means(flat, draws, seed, clusters))
    shape = table.shape[1:]
    return _mean(flat).reshape(shape), lo.reshape(shape), hi.reshape(shape)


Correlation: TypeAlias = tuple[float, float, float, int]  # (rho, lo, hi, units)


def bootstrap_spearman(x: ArrayLike, y: ArrayLike, draws: int, seed: int) -> Correlation:
    """(rho, lo, hi, units): Spearman's rank correlation over units of the prompt means of x and of y.

    Both are (prompts, units). The 95 % interval comes from resampling prompts, the same in both; noise between prompts
    pulls it towards 0. Units in which either is NaN are left out; fewer than three, or a side that is constant, give
    NaN.
    """
    left, right = (np.asarray(side, np.float64) for side in (x, y))
    used = ~np.isnan(_mean(left)) & ~np.isnan(_mean(right))
    a, b = (_ranks(_mean_and_resamples(side, draws, seed)[:, used]) for side in (left, right))
    return _correlation((a * b).sum(1), int(used.sum()))


def spearman_of_each(xs: ArrayLike, y: ArrayLike, draws: int, seed: int) -> list[Correlation]:
    """`bootstrap_spearman` of each of (k, units) known values with one (prompts, units) y."""
    known, rows = np.asarray(xs, np.float64), _mean_and_resamples(np.asarray(y, np.float64), draws, seed)
    used = ~np.isnan(known) & ~np.isnan(rows[0])
    correlations: dict[int, Correlation] = {}
    for units in np.unique(used, axis=0):  # y is ranked once for all x that have the same units
        same = np.flatnonzero((used == units).all(1))
        rho = _ranks(rows[:, units]) @ _ranks(known[same][:, units]).T
        correlations |= {int(i): _correlation(rho[:, j], int(units.sum())) for j, i in enumerate(same)}
    return [correlations[i] for i in range(len(known))]


def shuffled_spearman(rho: float, n: int, draws: int, seed: int) -> tuple[float, float, float]:
    """(lo, hi, p): where 95 % of rank correlations of n shuffled units fall, and the share as far from 0 as `rho`.

    Ties are ignored: the null is that of n distinct ranks. NaN for fewer than three units or an unknown rho.
    """
    if n < 3 or np.isnan(rho):
        return np.nan, np.nan, np.nan
    null, lo, hi = _shuffled(n, draws, seed)
    return lo, hi, float((np.count_nonzero(null >= abs(rho) - 1e-9) + 1) / (draws + 1))


@lru_cache(maxsize=256)
def _shuffled(n: int, draws: int, seed: int) -> tuple[Floats, float, float]:
    """Sizes of the rank correlations of n shuffled units, and where 95 % of them fall."""
    order = np.arange(n, dtype=np.float64)
    shuffled = np.random.default_rng(seed).permuted(np.tile(order, (draws, 1)), axis=1)
    null = _ranks(shuffled) @ _ranks(order[None])[0]
    lo, hi = np.percentile(null, [2.5, 97.5])
    return np.abs(null), float(lo), float(hi)


def wilcoxon_p(values: ArrayLike) -> Floats:
    """Two-sided signed-rank p values against zero over prompts: (prompts,) → 0-d, (prompts, units) → (units,).

    NaN is left out. Where nothing moved at all p is 1; where there is no value it is NaN.
    """
    table = np.asarray(values, np.float64)
    flat = table[:, None] if table.ndim == 1 else table
    p = np.full(flat.shape[1], np.nan)
    alike = defaultdict[tuple[str, int], list[int]](list)
    known = [column[~np.isnan(column)] for column in flat.T]
    for i, column in enumerate(known):
        if len(column) and not column.any():
            p[i] = 1.0
        elif len(column):
            alike[_signed_rank_method(column), len(column)].append(i)
    for (method, _), columns in alike.items():  # one call for many units: a call has a high fixed cost
        for part in [columns] if method != "auto" else [[i] for i in columns]:
            p[part] = stats.wilcoxon(np.array([known[i] for i in part]), axis=1, method=method).pvalue  # type: ignore[call-overload]
    return p.reshape(table.shape[1:])


def _signed_rank_method(column: Floats) -> Literal["exact", "asymptotic", "auto"]:
    """The method that scipy chooses for these values alone; "auto" is its permutation test."""
    sizes = np.abs(column)
    if not sizes.all() or len(np.unique(sizes)) < len(sizes):
        return "auto" if len(column) <= 13 else "asymptotic"
    return "asymptotic" if len(column) > 50 else "exact"


def resample_means(values: Floats, draws: int, seed: int, clusters: Sequence[str] | None = None) -> Floats:
    """The means of (prompts, units) over prompts drawn with replacement: (draws, units); NaN where none was drawn.

    With `clusters`, one name per prompt, clusters are drawn with replacement, each with all of its prompts.
    """
    known = ~np.isnan(values)
    if clusters is None:
        counts = _counts(len(values), draws, seed)
    else:
        names, which = np.unique(np.asarray(clusters, str), return_inverse=True)
        counts = _counts(len(names), draws, seed)[:, which]
    total = counts @ np.where(known, values, 0.0)
    if known.all() and len(values) and clusters is None:
        return total / len(values)
    with np.errstate(invalid="ignore"):
        return total / (counts @ known.astype(np.float64))


def ends(drawn: ArrayLike, n: int) -> tuple[Floats, Floats]:
    """(lo, hi): the 95 % interval of what was computed anew in every draw of n units (prompts, or their clusters).

    Percentiles of resamples are too narrow for few units, by √((n − 1)/n) and by what t is wider than a normal: the
    levels lie that much further out. For what has no formula; a mean has `tv.stats.means.mean_interval`.

    Args:
        drawn: (draws, …). NaN is a draw without a value; infinite values keep their place.
        n: The units that were drawn.

    Returns:
        Both (…); NaN below `FEWEST` units, and where no draw has a value.

    Source: T. C. Hesterberg (2015), What teachers should know about the bootstrap, Am. Stat. 69: expanded percentiles.

    Examples:
        >>> drawn = np.arange(1001.0)
        >>> [float(end) for end in ends(drawn, 1000)], [float(end) for end in ends(drawn, 8)]
        ([25.0, 975.0], [6.0, 994.0])
    """
    values = np.asarray(drawn, np.float64)
    known = ~np.isnan(values)
    if n < FEWEST:
        return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
    below = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1)))
    filled = np.where(known.any(0), values, 0.0)
    lo, hi = np.nanquantile(filled, [below, 1 - below], axis=0, method="nearest")
    return np.where(known.any(0), lo, np.nan), np.where(known.any(0), hi, np.nan)


@lru_cache(maxsize=4)
def _counts(n: int, draws: int, seed: int) -> Floats:
    """How often each of n prompts is in each draw, (draws, n)."""
    if n == 0:
        return np.zeros((draws, 0))
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def _mean(values: Floats) -> Floats:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)


def _interval(draws: Floats) -> tuple[Floats, Floats]:
    """The 2.5th and 97.5th percentile of every column; NaN draws are left out."""
    empty = np.isnan(draws)
    filled = np.where(empty.all(0), 0.0, draws)
    quantile = np.nanpercentile if empty.any() else np.percentile
    lo, hi = quantile(filled, [2.5, 97.5], axis=0)
    return np.where(empty.all(0), np.nan, lo), np.where(empty.all(0), np.nan, hi)


def _mean_and_resamples(values: Floats, draws: int, seed: int) -> Floats:
    """(1 + draws, units): the mean over prompts, and under it those of resampled prompts."""
    return np.vstack([_mean(values), resample_means(values, draws, seed)])


def _correlation(rho: Floats, units: int) -> Correlation:
    """Of rank correlations: the first is that of the means, the others those of resamples."""
    if np.isnan(rho[0]):
        return np.nan, np.nan, np.nan, units
    lo, hi = _interval(rho[1:, None].clip(-1, 1))
    return float(rho[0].clip(-1, 1)), float(lo[0]), float(hi[0]), units


def _ranks(rows: Floats) -> Floats:
    """Every row's ranks, centred and of norm 1, whose products are rank correlations; NaN for constants, NaN, and
    fewer than three units. Ranks are taken in float32, so that values equal but for rounding are ties.
    """
    n = rows.shape[1]
    if n < 3:
        return np.full(rows.shape, np.nan)
    ranks = stats.rankdata(rows.astype(np.float32), axis=1) - (n + 1) / 2
    with np.errstate(invalid="ignore"):
        ranks /= np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.where(np.isnan(rows).any(1, keepdims=True), np.nan, ranks)
