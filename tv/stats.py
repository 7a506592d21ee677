"""The statistics. The unit is the prompt: intervals come from resampling prompts, all units of one draw together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


def bootstrap_mean(
    values: ArrayLike, draws: int, seed: int, clusters: Sequence[str] | None = None
) -> tuple[Floats, Floats, Floats]:
    """(mean, lo, hi) over prompts, with the 95 % percentile interval of `draws` paired resamples of prompts.

    `values` is (prompts,) or (prompts, units); results are 0-d or (units,). NaN is a prompt without a value in that
    unit, and is left out of it; a unit without any value is NaN. The same resamples serve all units, and every call
    with as many prompts and the same seed. `clusters` names each prompt's, and clusters are drawn whole.
    """
    table = np.asarray(values, np.float64)
    flat = table[:, None] if table.ndim == 1 else table
    lo, hi = _interval(resample_means(flat, draws, seed, clusters))
    shape = table.shape[1:]
    return _mean(flat).reshape(shape), lo.reshape(shape), hi.reshape(shape)


def bootstrap_spearman(
    x: ArrayLike, y: ArrayLike, draws: int, seed: int, *, resampled: Floats | None = None
) -> tuple[float, float, float, int]:
    """(rho, lo, hi, units): Spearman's rank correlation over units of x with the prompt mean of y.

    x is (units,) or (prompts, units), y is (prompts, units). The 95 % interval comes from resampling prompts, in x too
    where it has them; noise between prompts pulls it towards 0. Units in which either is NaN are left out; fewer than
    three, or a side that is constant, give NaN. `resampled` may pass `resample_means(y, draws, seed)` where one y meets
    many x.
    """
    left, right = np.asarray(x, np.float64), np.asarray(y, np.float64)
    centre = left if left.ndim == 1 else _mean(left)
    used = ~np.isnan(centre) & ~np.isnan(_mean(right))
    n = int(used.sum())
    rho = float(_spearman(centre[None, used], _mean(right)[None, used])[0])
    if np.isnan(rho):
        return np.nan, np.nan, np.nan, n
    draws_y = resample_means(right, draws, seed) if resampled is None else resampled
    draws_x = centre[None] if left.ndim == 1 else resample_means(left, draws, seed)
    lo, hi = _interval(_spearman(draws_x[:, used], draws_y[:, used])[:, None])
    return rho, float(lo[0]), float(hi[0]), n


@lru_cache(maxsize=1024)
def shuffled_spearman(rho: float, n: int, draws: int, seed: int) -> tuple[float, float, float]:
    """(lo, hi, p): where 95 % of rank correlations of n shuffled units fall, and the share as far from 0 as `rho`.

    Ties are left aside: the null is that of n distinct ranks. NaN for fewer than three units or an unknown rho.
    """
    if n < 3 or np.isnan(rho):
        return np.nan, np.nan, np.nan
    generator = np.random.default_rng(seed)
    ranks = np.tile(np.arange(n, dtype=np.float64), (draws, 1))
    null = _spearman(np.arange(n, dtype=np.float64)[None], generator.permuted(ranks, axis=1))
    lo, hi = np.percentile(null, [2.5, 97.5])
    as_far = (np.abs(null) >= abs(rho) - 1e-9).sum()
    return float(lo), float(hi), float((as_far + 1) / (draws + 1))


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """q values of a family of p values (Benjamini & Hochberg 1995); NaN stays NaN and does not count."""
    p = np.asarray(p, np.float64)
    q = np.full_like(p, np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q


def wilcoxon_p(values: ArrayLike) -> Floats:
    """Two-sided signed-rank p values against zero over prompts: (prompts,) → 0-d, (prompts, units) → (units,).

    NaN is left out. Where nothing moved at all p is 1; where there is no value it is NaN.
    """
    table = np.asarray(values, np.float64)
    flat = table[:, None] if table.ndim == 1 else table
    return np.array([_signed_rank(column[~np.isnan(column)]) for column in flat.T]).reshape(table.shape[1:])


def resample_means(values: Floats, draws: int, seed: int, clusters: Sequence[str] | None = None) -> Floats:
    """The means of (prompts, units) over prompts drawn with replacement: (draws, units); NaN where none was drawn.

    With `clusters`, a name a prompt, clusters are drawn with replacement, each with all of its prompts.
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


def _spearman(x: Floats, y: Floats) -> Floats:
    """Rank correlation of each row of x (one or as many rows) with each row of y; NaN for constants and NaN rows.

    Ranks are taken in float32, so that values equal but for rounding are ties.
    """
    if x.shape[-1] < 3:
        return np.full(len(y), np.nan)
    a, b = (stats.rankdata(side.astype(np.float32), axis=1) - (side.shape[1] + 1) / 2 for side in (x, y))
    with np.errstate(invalid="ignore"):
        rho = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return np.where(np.isnan(x).any(1) | np.isnan(y).any(1), np.nan, rho.clip(-1, 1))


def _signed_rank(values: Floats) -> float:
    if not len(values):
        return float("nan")
    if not values.any():
        return 1.0
    return float(stats.wilcoxon(values).pvalue)
