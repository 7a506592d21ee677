"""Intervals of what has no formula, and that duplicates would spoil: groups of clusters are left out in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tv.runtime.seeds import seed_of
from tv.stats.means import FEWEST

#: Groups that are left out in turn, at most.
GROUPS = 12


def kept(clusters: Sequence[str], seed: int, groups: int = GROUPS) -> list[NDArray[np.bool_]]:
    """Which prompts stay when each group of clusters is left out; none with fewer than `FEWEST` clusters.

    Args:
        clusters: The cluster of each prompt.
        seed: Of which clusters are left out together.
        groups: How many groups, at most.

    Returns:
        Arrays (prompts,), one a group.

    Examples:
        >>> [int(stay.sum()) for stay in kept(list("aabbccddeeffgghh"), seed=0)]
        [14, 14, 14, 14, 14, 14, 14, 14]
    """
    names, which = np.unique(np.asarray(clusters, str), return_inverse=True)
    if len(names) < FEWEST:
        return []
    order = np.argsort([seed_of(f"left out {seed} {name}") for name in names])
    group = np.empty(len(names), np.int64)
    group[order] = np.arange(len(names)) % min(groups, len(names))
    return [group[which] != left for left in range(group.max() + 1)]


def interval(
    left_out: ArrayLike, value: float, lowest: float = -math.inf, highest: float = math.inf
) -> tuple[float, float]:
    """(lo, hi): the 95 % interval of the jackknife, by Student's t.

    Args:
        left_out: (groups,): the value without each group.
        value: The value of all prompts.
        lowest: No end lies below it.
        highest: Nor above.

    Returns:
        Two ends; NaN without groups, or where a value is NaN.

    Source: J. Shao and D. Tu (1995), The Jackknife and Bootstrap, §2.3 (delete-group).

    Examples:
        >>> [round(end, 2) for end in interval([0.5, 0.6, 0.4, 0.5, 0.5, 0.5, 0.55, 0.45], 0.5)]
        [0.15, 0.85]
    """
    values = np.asarray(left_out, np.float64)
    g = len(values)
    if g < 2 or math.isnan(value) or np.isnan(values).any():
        return math.nan, math.nan
    error = math.sqrt((g - 1) / g * float(((values - values.mean()) ** 2).sum()))
    far = float(stats.t.ppf(0.975, g - 1)) * error
    return float(np.clip(value - far, lowest, highest)), float(np.clip(value + far, lowest, highest))
