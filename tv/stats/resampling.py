"""Resampled prompts, all units of one draw together: for what has no formula of its own."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

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
