"""Shares of prompts, as of exact match: intervals that do not collapse at 0 and 1, and the test of a change."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from tv.stats.means import FEWEST, Floats


def share_interval(
    values: ArrayLike, clusters: Sequence[str] | None = None, level: float = 0.95
) -> tuple[float, float, float]:
    """(share, lo, hi): the share of ones, with Wilson's score interval.

    Args:
        values: (prompts,) of 0 and 1; NaN is a prompt without a value.
        clusters: The cluster of each prompt: alike prompts count for less (`effective_n`).
        level: The share of intervals that should cover.

    Returns:
        The share and its ends; NaN ends with fewer than `FEWEST` prompts or clusters, NaN all without a prompt.

    Source: E. B. Wilson (1927), J. Am. Stat. Assoc. 22.

    Examples:
        >>> [round(end, 2) for end in share_interval([1] * 8)]
        [1.0, 0.68, 1.0]
    """
    known, names = _known(values, clusters)
    if not len(known):
        return math.nan, math.nan, math.nan
    share = float(known.mean())
    if _units(names) < FEWEST:
        return share, math.nan, math.nan
    return share, *_wilson(share, effective_n(known, names), level)


def share_change(
    before: ArrayLike, after: ArrayLike, clusters: Sequence[str] | None = None, level: float = 0.95
) -> tuple[float, float, float]:
    """(change, lo, hi) of a share of ones on the same prompts, with Newcombe's paired score interval (method 10).

    Args:
        before: (prompts,) of 0 and 1; NaN is a prompt without a value.
        after: The same prompts afterwards.
        clusters: The cluster of each prompt: alike prompts count for less (`effective_n`).
        level: The share of intervals that should cover.

    Returns:
        after − before and its ends; NaN ends with fewer than `FEWEST` prompts or clusters.

    Source: R. G. Newcombe (1998), Stat. Med. 17, 2635–2650, method 10.

    Examples:
        >>> [round(end, 2) for end in share_change([1] * 8, [1] * 8)]
        [0.0, -0.32, 0.32]
    """
    pair = np.stack([np.asarray(before, np.float64), np.asarray(after, np.float64)], 1)
    _, names = _known(pair.sum(1), clusters)
    a, b = pair[~np.isnan(pair.sum(1))].T
    if not len(a):
        return math.nan, math.nan, math.nan
    change = float(b.mean() - a.mean())
    if _units(names) < FEWEST:
        return change, math.nan, math.nan
    n = effective_n(b - a, names)
    first, second = float(a.mean()), float(b.mean())
    (lo_a, hi_a), (lo_b, hi_b) = _wilson(first, n, level), _wilson(second, n, level)
    phi = _phi(a, b, n)
    down = math.sqrt((second - lo_b) ** 2 - 2 * phi * (second - lo_b) * (hi_a - first) + (hi_a - first) ** 2)
    up = math.sqrt((hi_b - second) ** 2 - 2 * phi * (hi_b - second) * (first - lo_a) + (first - lo_a) ** 2)
    return change, change - down, change + up


def mcnemar_p(before: ArrayLike, after: ArrayLike, clusters: Sequence[str] | None = None) -> float:
    """Exact two-sided p of McNemar's test: did as many prompts turn from 0 to 1 as from 1 to 0?

    Args:
        before: (prompts,) of 0 and 1; NaN is a prompt without a value.
        after: The same prompts afterwards.
        clusters: The cluster of each prompt. The prompts of one cluster are turned together.

    Returns:
        The probability, with the sign of each cluster's sum by a fair coin, of a sum at least as far from 0; 1 where
        nothing turned, NaN without a prompt.

    Source: Q. McNemar (1947), Psychometrika 12; without clusters it is his exact test.

    Examples:
        >>> mcnemar_p([1, 1, 1, 1, 0], [0, 0, 0, 0, 0])
        0.125
    """
    gap = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    known, names = _known(gap, clusters)
    if not len(known):
        return math.nan
    which = np.unique(np.asarray(names, str), return_inverse=True)[1]
    sums = [int(total) for total in np.bincount(which, known).round() if total]
    reach = sum(abs(total) for total in sums)
    chance = np.zeros(2 * reach + 1)  # of each sum from −reach to reach
    chance[reach] = 1
    for total in sums:
        chance = (np.roll(chance, total) + np.roll(chance, -total)) / 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(sum(sums))
    return float(min(1.0, chance[far].sum()))


def detectable_change(n: int, turned: float, power: float = 0.8) -> float:
    """The smallest change of a share that n paired prompts show (McNemar's exact p < 0.05) with this power.

    Args:
        n: Prompts, or clusters of them.
        turned: The share of them that turns, from 0 to 1 or from 1 to 0; where the change is larger, all of it turns.
        power: How often it should be seen.

    Returns:
        The change, in (0, 1); NaN below `FEWEST`.

    Examples:
        >>> round(detectable_change(48, 0.2), 3), round(detectable_change(8, 0.2), 3)
        (0.179, 0.801)
    """
    if n < FEWEST:
        return math.nan
    k = np.arange(n + 1)  # prompts that turn
    needed = stats.binom.isf(0.025, k, 0.5) + 1  # that turn one way, for p < 0.05

    def missing(change: float) -> float:
        turning = max(turned, change)
        up = (1 + change / turning) / 2
        one_way = stats.binom.sf(needed - 1, k, up) + stats.binom.cdf(k - needed, k, up)
        return float(stats.binom.pmf(k, n, turning) @ one_way) - power

    return float(optimize.brentq(missing, 0.0, 1.0))


def effective_n(values: Floats, clusters: Sequence[str]) -> float:
    """How many independent prompts these are worth for a mean of theirs.

    The variance of independent prompts over that of clusters, at most the number of prompts; times the ratio of squared
    t quantiles, for few clusters know their variance badly. Where all values are alike, the data cannot say how alike
    prompts of a cluster are, and each cluster counts as one.

    Args:
        values: (prompts,), without NaN.
        clusters: The cluster of each.

    Returns:
        A number of prompts.

    Source: E. L. Korn and B. I. Graubard (1998), Survey Methodology 24.

    Examples:
        >>> effective_n(np.array([0.0, 1.0, 0.0, 1.0]), ["a", "a", "b", "b"])
        4.0
    """
    names = sorted(set(clusters))
    if len(names) == len(values):
        return float(len(values))
    if not np.ptp(values):
        return float(len(names))
    apart = values - values.mean()
    sums = np.array([apart[np.asarray(clusters) == name].sum() for name in names])
    n, c = len(values), len(names)
    design = max(1.0, (sums**2).sum() * c / (c - 1) / ((apart**2).sum() * n / (n - 1)))
    if design == 1.0:
        return float(n)
    fewer = (stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, c - 1)) ** 2
    return float(max(1.0, n / design * fewer))


def _wilson(share: float, n: float, level: float) -> tuple[float, float]:
    z = float(stats.norm.ppf((1 + level) / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))  # whatever rounding does


def _phi(a: Floats, b: Floats, n: float) -> float:
    """How far the two go together, with Newcombe's correction for continuity where they do at all."""
    both, neither = float((a * b).mean() * n), float(((1 - a) * (1 - b)).mean() * n)
    lost, gained = float((a * (1 - b)).mean() * n), float(((1 - a) * b).mean() * n)
    size = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if size <= 0:
        return 0.0
    product = both * neither - lost * gained
    product = max(product - n / 2, 0.0) if product > 0 else product
    return product / math.sqrt(size)


def _known(values: ArrayLike, clusters: Sequence[str] | None) -> tuple[Floats, list[str]]:
    flat = np.asarray(values, np.float64)
    names = list(np.arange(len(flat)).astype(str)) if clusters is None else list(clusters)
    kept = ~np.isnan(flat)
    return flat[kept], [name for name, keep in zip(names, kept, strict=True) if keep]


def _units(clusters: Sequence[str]) -> int:
    return len(set(clusters))
