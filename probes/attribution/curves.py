"""Faithfulness: move the top-ranked units together and see how much of the change comes with them.

A ranking with meaning lifts the curve above random order and above ‖T‖. Each ranking is tried both ways: its
top n grafted into the base, and reverted in the tuned model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.attribution.effects import BACKWARD, FORWARD
from probes.attribution.forwards import Floats, Told, from_model, values_under
from probes.attribution.metric import Metric
from probes.attribution.units import Unit
from probes.capture.pair import Pair
from tv.prompts.encoding import Batch

#: The share of the change that the smallest sufficient set must reach.
ENOUGH = 0.8
RANDOM = "random"


@dataclass(frozen=True)
class Curves:
    """The metric of every prompt with each ranking's top n moved, and the area under each curve."""

    points: pd.DataFrame  # ranking draw direction n prompt_id value
    areas: pd.DataFrame  # ranking draw direction area n_enough


def rankings_of(scores: Mapping[str, Mapping[Unit, float]], units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Units by falling score; one without a score comes last, in order."""
    return {
        name: sorted(units, key=lambda unit, by_unit=by_unit: -_known(by_unit.get(unit, np.nan)))  # type: ignore[misc]
        for name, by_unit in scores.items()
    }


def curves(
    pair: Pair,
    rankings: Mapping[str, Sequence[Unit]],
    batches: Sequence[Batch],
    metric: Metric,
    *,
    draws: int = 5,
    points: int | None = None,
    seed: int = 0,
    told: Told | None = None,
) -> Curves:
    """Every ranking of the same units, and `draws` random orders, cumulatively in both directions.

    `points` bounds how many values of n are tried besides 0 and all: evenly on a log scale, so that the head of a
    ranking is seen in full. A set of units that several curves share is evaluated once.
    """
    units = list(next(iter(rankings.values())))
    generator = np.random.default_rng(seed)
    shuffled = [[units[i] for i in generator.permutation(len(units))] for _ in range(draws)]
    orders = [(name, 0, list(order)) for name, order in rankings.items()]
    orders += [(RANDOM, draw, order) for draw, order in enumerate(shuffled)]
    sizes = _sizes(len(units), points)
    sets = list(dict.fromkeys(frozenset(order[:n]) for _, _, order in orders for n in sizes if n))
    curve = pd.MultiIndex.from_tuples(
        [(name, draw, n) for name, draw, _ in orders for n in sizes], names=["ranking", "draw", "n"]
    )
    prompts, parts = pd.Index([item.prompt.id for batch in batches for item in batch.encoded], name="prompt_id"), []
    for direction, model, other in ((FORWARD, pair.base, pair.tuned), (BACKWARD, pair.tuned, pair.base)):
        swaps = [from_model(model, other, pair.architecture, sorted(subset, key=str)) for subset in sets]
        start, moved = values_under(model, pair.architecture, swaps, batches, metric, told)
        value = {subset: moved[i] for i, subset in enumerate(sets)} | {frozenset(): start}
        table = np.stack([value[frozenset(order[:n])] for _, _, order in orders for n in sizes])
        long = pd.DataFrame(table, curve, prompts).stack().rename("value").reset_index()
        parts.append(long.assign(direction=direction))
    every = pd.concat(parts, ignore_index=True).dropna(subset="value")
    return Curves(every, areas_of(every))


def areas_of(points: pd.DataFrame) -> pd.DataFrame:
    """Per ranking, draw and direction: the mean share of the change over n = 0 … all, and the smallest n with ENOUGH.

    The area is under the share against n / all (trapezoids): 1 where the first unit does everything, 0.5 where all do
    the same. Shares are of the means over prompts, and may exceed 1; NaN where the metric does not change.
    """
    rows = []
    for (ranking, draw, direction), curve in points.groupby(["ranking", "draw", "direction"], sort=False):
        mean = curve.groupby("n").value.mean()
        share = shares(mean.to_numpy())
        n = mean.index.to_numpy(np.float64)
        area = float(np.trapezoid(share, n / n[-1])) if len(n) > 1 else np.nan
        enough = n[share >= ENOUGH]
        rows.append((ranking, draw, direction, area, enough[0] if len(enough) else np.nan))
    return pd.DataFrame(rows, columns=["ranking", "draw", "direction", "area", "n_enough"])


def shares(values: Floats) -> Floats:
    """How much of the way from the first value (nothing moved) to the last (everything moved) each one is."""
    change = values[-1] - values[0]
    return (values - values[0]) / change if change else np.full(len(values), np.nan)


def _sizes(n: int, points: int | None) -> list[int]:
    if points is None or points >= n:
        return list(range(n + 1))
    spaced = np.unique(np.rint(np.geomspace(1, n, points)).astype(int))
    return [0, *spaced.tolist()]


def _known(value: float) -> float:
    return -np.inf if np.isnan(value) else value
