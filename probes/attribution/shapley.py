"""Sampled Shapley values: each unit's marginal effect, averaged over orders in which all of them are grafted.

Castro, Gómez & Tejada 2009 (Computers & Operations Research 36). Unlike graft and revert they sum to the whole change,
in every sampled order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.attribution.effects import FORWARD, Effects
from probes.attribution.exact import prompts_of
from probes.attribution.forwards import Told, from_model, values_under
from probes.attribution.metric import Metric
from probes.attribution.units import Unit
from probes.capture.pair import Pair
from tv.prompts.encoding import Batch


def shapley(
    pair: Pair,
    units: Sequence[Unit],
    batches: Sequence[Batch],
    metric: Metric,
    *,
    orders: int,
    seed: int,
    told: Told | None = None,
) -> Effects:
    """Mean marginal effects over `orders` random orders, each taken forwards and backwards.

    Costs orders × 2 × (units − 1) forwards over the prompts, of which a set that several orders share is done once.
    """
    generator = np.random.default_rng(seed)
    n = len(units)
    drawn = [generator.permutation(n) for _ in range(orders)]
    paths = [order for one in drawn for order in (one, one[::-1])]
    sets = list(dict.fromkeys(frozenset(path[:size].tolist()) for path in paths for size in range(1, n + 1)))
    swaps = [from_model(pair.base, pair.tuned, pair.architecture, [units[i] for i in sorted(own)]) for own in sets]
    start, found = values_under(pair.base, pair.architecture, swaps, batches, metric, told)
    value = {own: found[i] for i, own in enumerate(sets)} | {frozenset(): start}
    total = np.zeros((n, len(start)))
    for path in paths:
        before = start
        for size in range(1, n + 1):
            after = value[frozenset(path[:size].tolist())]
            total[path[size - 1]] += after - before
            before = after
    return Effects("shapley", FORWARD, tuple(units), prompts_of(batches), total / len(paths))
