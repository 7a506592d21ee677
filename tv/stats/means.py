"""Means over prompts: their interval, and the test that this interval is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

#: With fewer units (prompts, or clusters of them) no interval is shown: skewed effects are covered too rarely.
FEWEST = 8
#: Units that must differ from the median: with fewer, one or two prompts make the whole spread.
_MOVED = 3
#: With fewer clusters than this, a report warns.
FEW_CLUSTERS = 20
#: A few values show less skewness than what they were drawn from: by how much it is taken to be larger.
_SKEW = 1.6


class Mean(NamedTuple):
    """Means, their 95 % intervals, p against 0, and how many units stand behind each.

    Each is 0-d for the values of one unit of analysis, else (units of analysis,). `lo`, `hi` and `p` are NaN where too
    few units vary; where none of enough units differs from 0, p is 1.
    """

    mean: Floats
    lo: Floats
    hi: Floats
    p: Floats
    n: NDArray[np.int64]


def mean_interval(values: ArrayLike, clusters: Sequence[str] | None = None, level: float = 0.95) -> Mean:
    """The mean over prompts with an interval that also covers where effects are skewed.

    The interval is the wider end, on each side, of Student's t and of Hall's transformation of t for skewness; p is the
    level at which that interval just touches 0. So p < 0.05 exactly where the 95 % interval leaves 0 out.
    `benchmarks/calibration.py` measures how often it covers.

    Args:
        values: (prompts,) or (prompts, units of analysis), in the measure's unit. NaN is a prompt without a value.
        clusters: The cluster of each prompt. Prompts of one cluster count as one draw, with as many degrees of freedom
            as there are clusters, less one. None: every prompt is its own.
        level: The share of intervals that should cover.

    Returns:
        `mean lo hi p n`; no interval with fewer than `FEWEST` units, or where fewer than three differ from the median.

    Source: P. Hall (1992), On the removal of skewness by transformation, J. R. Stat. Soc. B 54; Student's t.

    Examples:
        >>> estimate = mean_interval([1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.5, 2.5])
        >>> float(estimate.mean), round(float(estimate.lo), 2), round(float(estimate.hi), 2)
        (2.0, 1.49, 2.51)
    """
    table = np.asarray(values, np.float64)
    flat = table[:, None] if table.ndim == 1 else table
    mean, units = _as_units(flat, clusters)
    known = ~np.isnan(units)
    n = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.where(known, units - mean, 0.0)
        variance = (apart**2).sum(0) / (n - 1)
        error = np.sqrt(variance / n)
        skew = (apart**3).sum(0) / n / ((apart**2).sum(0) / n) ** 1.5
        slant = _SKEW * skew * np.sqrt(n * (n - 1)) / (n - 2) / np.sqrt(n)
        quantile = stats.t.ppf((1 + level) / 2, np.maximum(n - 1, 1))
        far = [quantile, _without_skew(quantile, slant)], [-quantile, _without_skew(-quantile, slant)]
        lo, hi = mean - np.max(far[0], 0) * error, mean - np.min(far[1], 0) * error
        t = mean / error
        p = 2 * stats.t.sf(np.minimum(np.abs(t), np.abs(_with_skew(t, slant))), n - 1)
        p = np.where(np.sign(t) == np.sign(_with_skew(t, slant)), p, 1.0)
    shown = (n >= FEWEST) & (_moved(units) >= _MOVED)
    still = known.any(0) & ~(np.where(known, units, 0.0) != 0).any(0)
    lo, hi = np.where(shown, lo, np.nan), np.where(shown, hi, np.nan)
    p = np.where(shown, p, np.where(still & (n >= FEWEST), 1.0, np.nan))
    mean, lo, hi, p = (part.reshape(table.shape[1:]) for part in (mean, lo, hi, p))
    return Mean(mean, lo, hi, p, n.reshape(table.shape[1:]))


def detectable(n: int, power: float = 0.8) -> float:
    """The smallest mean that n units show (p < 0.05) with this power, in standard deviations between units.

    Args:
        n: Prompts, or clusters of them.
        power: How often it should be seen.

    Returns:
        (t_0.975 + t_power)/√n with n − 1 degrees of freedom, times what the wider end of two intervals costs, which
        was measured on normal values; NaN below `FEWEST`.

    Source: The usual approximation of the power of Student's t.

    Examples:
        >>> round(detectable(48), 2)
        0.42
    """
    if n < FEWEST:
        return float("nan")
    wider = 1 + (5 / n) ** 2
    return float(wider * (stats.t.ppf(0.975, n - 1) + stats.t.ppf(power, n - 1)) / np.sqrt(n))


def _as_units(values: Floats, clusters: Sequence[str] | None) -> tuple[Floats, Floats]:
    """(mean over prompts, what each cluster contributes to it): contributions spread around the mean as units would."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, values, 0.0).sum(0) / known.sum(0)
    if clusters is None or len(set(clusters)) == len(values):
        return mean, values
    names, which = np.unique(np.asarray(clusters, str), return_inverse=True)
    member = (which == np.arange(len(names))[:, None]).astype(np.float64)
    total, size = member @ np.where(known, values, 0.0), member @ known
    with np.errstate(invalid="ignore"):
        apart = (total - size * mean) * (size > 0).sum(0) / size.sum(0)
    return mean, np.where(size > 0, mean + apart, np.nan)


def _moved(units: Floats) -> NDArray[np.int64]:
    """How many units differ from the median of their column."""
    known = ~np.isnan(units)
    middle = np.nanmedian(np.where(known.any(0), units, 0.0), axis=0) if len(units) else np.zeros(units.shape[1])
    return (known & (units != middle)).sum(0)


def _with_skew(t: Floats, slant: Floats) -> Floats:
    """Hall's transformation of a t value; `slant` is skewness/√n."""
    return t + slant * t**2 / 3 + slant**2 * t**3 / 27 + slant / 6


def _without_skew(z: Floats, slant: Floats) -> Floats:
    """Its inverse."""
    with np.errstate(invalid="ignore", divide="ignore"):
        turned = 3 / slant * (np.cbrt(1 + slant * (z - slant / 6)) - 1)
    return np.where(np.abs(slant) < 1e-9, z, turned)
