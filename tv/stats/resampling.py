"""Resampled prompts, all units of one draw together: for what has no formula of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from tv.stats.means import FEWEST, Floats


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
