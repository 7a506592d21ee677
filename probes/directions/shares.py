"""Effects as shares of the whole change, with intervals that know that the change was measured too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tv.stats.means import Floats, mean_interval


def shares(
    effects: Floats, change: Floats, clusters: Sequence[str], floor: float = 0.0
) -> tuple[Floats, Floats, Floats]:
    """(share, lo, hi) of mean effect ÷ mean change, by column.

    Args:
        effects: (prompts, columns), in the metric's unit; NaN is a prompt without a value.
        change: (prompts,) M(tuned) − M(base).
        clusters: The cluster of each prompt.
        floor: A mean change that rounding alone can make.

    Returns:
        Three arrays (columns,). NaN where there is no change to be a share of: its interval has 0 in it, or it is
        within the floor. The interval is that of the mean of effect − share × change, divided by the mean change.

    Source: Ratio estimates by linearisation; W. G. Cochran (1977), Sampling Techniques, chapter 6.

    Examples:
        >>> change = np.array([2.0, 2.1, 1.9, 2.0, 2.2, 1.8, 2.0, 2.3, 1.7, 2.0])
        >>> part, lo, hi = shares((change / 2)[:, None], change, list("abcdefghij"))
        >>> float(part[0])
        0.5
    """
    whole = mean_interval(change, clusters)
    unknown = np.full(effects.shape[1], np.nan)
    if not (whole.lo > 0 or whole.hi < 0) or abs(whole.mean) <= floor:
        return unknown, unknown, unknown
    known = np.where(np.isnan(effects), np.nan, change[:, None])
    total = np.nanmean(known, 0) if len(effects) else unknown
    share = np.nanmean(effects, 0) / total
    apart = mean_interval((effects - share * change[:, None]) / total, clusters)
    exact = np.nanmax(np.abs(effects - share * change[:, None]), 0) <= 1e-9 * np.abs(total)
    lo, hi = (np.where(exact, share, share + end) for end in (apart.lo, apart.hi))
    return share, lo, hi
