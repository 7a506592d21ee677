"""Random halves of the prompts: what is chosen on one half is measured on the other.

The largest of many noisy means is large by luck too. On prompts that did not choose it, the luck is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from probes.attribution.forwards import Floats
from tv.runtime.seeds import seed_of
from tv.stats.means import FEWEST

#: How many random halvings are averaged over.
HALVES = 20


def halves(clusters: Sequence[str], seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which prompts are in the first half, of each random halving. Clusters stay whole.

    A cluster's place is drawn by its name, so that another prompt more or less moves hardly any other.

    Args:
        clusters: The cluster of each prompt.
        seed: Of the draws.

    Returns:
        `HALVES` arrays (prompts,); none with fewer than four clusters.

    Examples:
        >>> first = next(halves(["a", "b", "c", "d", "d"], seed=0))
        >>> int(first.sum()) in (2, 3), bool(first[3] == first[4])
        (True, True)
    """
    names, which = np.unique(np.asarray(clusters, str), return_inverse=True)
    if len(names) >= 4:
        yield from (first[which] for first in _drawn(tuple(names.tolist()), seed))


def held_out(values: Floats, clusters: Sequence[str], seed: int) -> Floats:
    """What each unit's rank is worth on prompts that did not choose it.

    On one half of the prompts the units are ranked by the size of their mean; on the other half the unit of every rank
    is measured, with the sign that it had on the first: both ways, averaged over `HALVES` halvings. A unit gets the
    value of its rank over all prompts, with its own sign. Half of the prompts choose worse than all of them, so the
    value errs towards 0, if at all.

    Args:
        values: (units, prompts), in the metric's unit; NaN is a prompt without a value.
        clusters: The cluster of each prompt; clusters stay whole.
        seed: Of the halvings.

    Returns:
        (units,); NaN with fewer than `FEWEST` clusters.

    Examples:
        >>> alike = np.tile([[3.0], [-5.0]], 9)
        >>> held_out(alike, list("abcdefghi"), seed=0).tolist()
        [3.0, -5.0]
    """
    if len(set(clusters)) < FEWEST or not len(values):
        return np.full(len(values), np.nan)
    first = np.stack(list(halves(clusters, seed)))
    one, other = (means(values, side) for side in (np.vstack([first, ~first]), np.vstack([~first, first])))
    order = np.argsort(-np.abs(one), axis=1, kind="stable")  # NaN comes last
    there = np.sign(np.take_along_axis(one, order, 1)) * np.take_along_axis(other, order, 1)
    overall = means(values, np.ones((1, values.shape[1]), bool))[0]
    rank = np.argsort(np.argsort(-np.abs(overall), kind="stable"))
    return np.sign(overall) * there.mean(0)[rank]


def means(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """(choices, units): the mean of each unit over each choice of prompts; NaN where it has no value there."""
    known = ~np.isnan(values)
    total, n = (table @ chosen.T.astype(np.float64) for table in (np.where(known, values, 0.0), known))
    return np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0).T


@lru_cache(maxsize=64)
def _drawn(names: tuple[str, ...], seed: int) -> list[NDArray[np.bool_]]:
    ranks = ([seed_of(f"half {seed} {draw} {name}") for name in names] for draw in range(HALVES))
    return [np.argsort(np.argsort(rank)) < len(names) // 2 for rank in ranks]
