"""What stands out of draws of a null: a list of values by rank, compared with the lists that the draws give."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

#: Fewer draws than this do not tell how they scatter.
FEW = 16
#: A smaller p is not given: a few draws do not tell how their distribution ends.
LEAST = 1e-4


class Beyond(NamedTuple):
    """Of every rank: what the draws reach there, and how likely one more draw is to reach the value."""

    null: Floats  # the largest of the draws
    rank_p: Floats  # (1 + draws that reach the value) / (1 + draws)
    p: Floats  # of a further draw, if draws at this rank are log-normal; never below that of the rank before


def beyond(values: ArrayLike, draws: ArrayLike) -> Beyond:
    """Whether values, the largest first, are larger than draws of a null give at the same rank.

    The first value is compared with the largest value of every draw, the second with the second, and so on: a null
    that is searched as widely gives lists as long. So the first p is of the whole list, and no later one is smaller.
    With n draws the rank alone tells no p below 1/(n + 1). Above all draws, `p` is that of Student's t for one further
    draw, of logarithms, as the largest of many scores are skewed; where some are zero, as shares of few texts may be,
    half of the least positive one is added first; of plain values where some are negative. With fewer than `FEW` draws,
    which do not tell how they scatter, and where all draws are alike, it is that of the rank; none is below `LEAST`.

    Args:
        values: (ranks,), by rank.
        draws: (draws, ranks), each by rank.

    Returns:
        `null rank_p p`, each (ranks,).

    Examples:
        >>> beyond([5.0, 1.0], [[1.0, 0.9], [1.2, 1.0], [0.8, 0.7]]).rank_p.tolist()
        [0.25, 0.5]
    """
    own, null = np.asarray(values, np.float64), np.asarray(draws, np.float64)
    n = len(null)
    if not n:
        nothing = np.full(own.shape, np.nan)
        return Beyond(nothing, nothing, nothing)
    rank_p = (1 + (null >= own).sum(0)) / (n + 1)
    if n < FEW:
        p = rank_p
    else:
        both = np.vstack([own, null])
        if (both >= 0).all():
            both = np.log(both + (0 if (both > 0).all() else both[both > 0].min(initial=1) / 2))
        own, null = both[0], both[1:]
        spread = null.std(0, ddof=1) * np.sqrt(1 + 1 / n)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (own - null.mean(0)) / spread
        above_all = (rank_p * (n + 1) <= 1) & (np.ptp(null, axis=0) > 0)
        tail = np.maximum(stats.t.sf(t, n - 1), LEAST)
        p = np.where(above_all, tail, rank_p)  # among the draws, the rank says it
    return Beyond(np.asarray(draws, np.float64).max(0), rank_p, np.maximum.accumulate(p))
