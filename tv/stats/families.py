"""Many tests in one sentence: p values corrected for their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from tv.stats.means import Floats


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """q values of a family of p values (Benjamini & Hochberg 1995); NaN stays NaN and does not count."""
    p = np.asarray(p, np.float64)
    q = np.full_like(p, np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known])
    return q


def holm(p: ArrayLike) -> Floats:
    """p values corrected so that one false claim in the family is as rare as in one test; NaN does not count.

    Args:
        p: (tests,).

    Returns:
        (tests,): below 0.05 where the claim stands.

    Source: S. Holm (1979), Scand. J. Stat. 6.

    Examples:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p, np.float64)
    corrected = np.full_like(p, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
