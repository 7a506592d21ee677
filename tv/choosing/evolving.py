"""The best of a fixed number of evaluations: a grid in one dimension, then CMA-ES from its best point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tv.errors import InputError
from tv.stats.means import Floats

#: The first step of CMA-ES, in the coordinates' unit.
STEP = 0.2
#: The share of the budget that finds the start, on the line from nothing to the longest of all; at most so many.
LINE, LONGEST_LINE = 0.25, 12


def best_of_line(worth: Callable[[Floats], float], top: Floats, count: int) -> Floats:
    """The best of `count` points on the line from 0 (without it) to `top` (with it)."""
    points = [top * (i + 1) / count for i in range(count)]
    return max(points, key=worth)


def evolve(
    worth: Callable[[Floats], float], low: Sequence[float], high: Sequence[float], budget: int, seed: int
) -> Floats:
    """The best point between the bounds that `budget` evaluations of `worth` find, all of them counted.

    Source: N. Hansen (2016), The CMA evolution strategy: a tutorial, arXiv 1604.00772.

    Raises InputError where cma is not installed.
    """
    strategy_of = require_cma()
    bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
    seen: list[tuple[float, Floats]] = []

    def counted(point: Floats) -> float:
        value = worth(point)
        seen.append((value, point))
        return value

    best_of_line(lambda point: counted(np.maximum(point, bottom)), top, min(LONGEST_LINE, max(2, int(LINE * budget))))
    start = max(seen, key=lambda one: one[0])[1]
    options = {"bounds": [list(bottom), list(top)], "seed": seed + 1, "verbose": -9, "verb_log": 0}
    strategy = strategy_of(start, STEP, options)
    while not strategy.stop() and len(seen) < budget:
        asked = strategy.ask()
        if len(seen) + len(asked) > budget:
            for point in asked[: budget - len(seen)]:
                counted(np.asarray(point))
            break
        strategy.tell(asked, [-counted(np.asarray(point)) for point in asked])
    return max(seen, key=lambda one: one[0])[1]


def require_cma() -> Callable[..., Any]:
    """What makes a strategy of cma's. Raises InputError where cma is not installed."""
    try:
        from cma import CMAEvolutionStrategy
    except ImportError:
        raise InputError("a search of several scales needs cma; install tuning-probes[search]") from None
    strategy: Callable[..., Any] = CMAEvolutionStrategy
    return strategy
