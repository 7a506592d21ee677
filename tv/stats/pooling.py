"""Shares of many matrices against their nulls, as one question: z corrected for skew, pooled, and its p."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy import special  # not its statistics, which take half a second to import

if TYPE_CHECKING:
    from tv.stats.means import Floats

#: A smaller tail is taken as this: z of about 37.
_TAIL = 1e-300


def normal_scores(share: ArrayLike, mean: ArrayLike, z: ArrayLike) -> Floats:
    """What a share under its null is as a draw of a standard normal: z, corrected for the null's skew.

    The null is taken as the beta distribution with its mean and deviation. That is exact for the share of one random
    direction in a subspace, a T of rank 1, whose own z falls beyond 3 ten times as often as a normal's.

    Args:
        share: Of T's energy in a subspace: SSA².
        mean: The mean of the null: the square of `ssa_null`.
        z: (share − mean) in standard deviations of the null: `ssa_z`.

    Returns:
        Scores, NaN where z is and where the null leaves no room; at most about 37 in size.

    Examples:
        >>> normal_scores([0.5, 0.12], [0.1, 0.1], [3.0, 3.0]).round(2).tolist()
        [2.01, 2.86]
    """
    share, mean, z = (np.asarray(values, np.float64) for values in (share, mean, z))
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation = (share - mean) / z
        size = mean * (1 - mean) / deviation**2 - 1
        inside = (share > 0) & (share < 1) & (size > 0)
        null = np.where(inside, mean * size, np.nan), np.where(inside, (1 - mean) * size, np.nan)
        below, above = special.betainc(*null, share), special.betaincc(*null, share)
        scores = np.where(below < above, 1, -1) * special.ndtri(np.maximum(np.minimum(below, above), _TAIL))
    return np.where(inside, scores, np.where(mean < 1, z, np.nan))


def pooled(scores: ArrayLike) -> float:
    """Σ/√n of the scores that are known: a standard normal again where all are draws of one. NaN of none.

    Examples:
        >>> pooled([1.0, 2.0, 3.0, np.nan, 2.0])
        4.0
    """
    scores = np.asarray(scores, np.float64)
    known = scores[~np.isnan(scores)]
    return float(known.sum() / np.sqrt(len(known))) if len(known) else float("nan")


def two_sided(z: ArrayLike) -> Floats:
    """p of standard normal scores, whichever way they lie.

    Examples:
        >>> two_sided([1.96, -1.96]).round(3).tolist()
        [0.05, 0.05]
    """
    return np.asarray(2 * special.ndtr(-np.abs(np.asarray(z, np.float64))))
