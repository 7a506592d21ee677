"""Sampled Shapley values: each unit's marginal effect, averaged over orders in which all of them are grafted.

Castro, Gómez & Tejada 2009 (Computers & Operations Research 36). Unlike graft and revert they sum to the whole change,
in every sampled order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from probes.attribution.effects import FORWARD, Effects
from probes.attribution.forwards import Variant
from probes.attribution.units import Unit, components
from probes.attribution.work import Work


def shapley(work: Work, units: Sequence[Unit], *, orders: int = 10) -> Iterator[Effects]:
    """Mean marginal effects over `orders` random orders, each taken forwards and backwards.

    Costs orders × 2 × (units − 1) forwards over the prompts; a set that several orders share is run once.

    Args:
        work: The pair, the prompts and the metric.
        units: What is moved; all components where none are given.
        orders: Random orders.
    """
    units = units or components(work.pair.architecture)
    generator = np.random.default_rng(work.seed)
    n = len(units)
    drawn = [generator.permutation(n) for _ in range(orders)]
    paths = [order for one in drawn for order in (one, one[::-1])]
    sets = list(dict.fromkeys(frozenset(path[:size].tolist()) for path in paths for size in range(1, n + 1)))
    start, values = work.under([Variant("base", tuple(units[i] for i in some)) for some in sets])
    value = {some: values[i] for i, some in enumerate(sets)} | {frozenset(): start}
    total = np.zeros((n, len(start)))
    for path in paths:
        before = start
        for size in range(1, n + 1):
            after = value[frozenset(path[:size].tolist())]
            total[path[size - 1]] += after - before
            before = after
    yield Effects("shapley", FORWARD, tuple(units), work.prompts, total / len(paths))
