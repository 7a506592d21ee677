"""Faithfulness: move the top-ranked units together and see how much of the change comes with them.

A ranking with meaning lifts the curve above random order and above ‖T‖. Each ranking is tried both ways: its
top n grafted into the base, and reverted in the tuned model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.attribution.effects import BACKWARD, FORWARD, floor_of
from probes.attribution.forwards import Model, Variant
from probes.attribution.units import Unit
from probes.attribution.work import Work
from probes.store.schemas import ALL_DOMAINS
from tv.stats.change import LEAST_FLOOR
from tv.stats.means import mean_interval

#: The share of the change that the smallest sufficient set must reach.
ENOUGH = 0.8
RANDOM = "random"
#: A change with a larger p than this does not differ clearly from 0.
ALPHA = 0.05


@dataclass(frozen=True)
class Curves:
    """The metric of every prompt with each ranking's top n moved, and the area under each curve."""

    points: pd.DataFrame  # ranking draw direction n prompt_id value
    areas: pd.DataFrame  # ranking draw direction area lo hi n_enough


def rankings_of(scores: Mapping[str, Mapping[Unit, float]], units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Units by falling score; without those that have none."""
    known = {
        name: [unit for unit in units if not np.isnan(by_unit.get(unit, np.nan))] for name, by_unit in scores.items()
    }
    return {name: sorted(some, key=lambda unit, name=name: -scores[name][unit]) for name, some in known.items()}  # type: ignore[misc]


def curves(
    work: Work,
    rankings: Mapping[str, Sequence[Unit]],
    units: Sequence[Unit],
    *,
    draws: int = 5,
    points: int | None = None,
) -> Curves:
    """Every ranking of the units, and `draws` random orders, cumulatively in both directions.

    `points` bounds how many values of n are tried besides 0 and all: evenly on a log scale, so that the head of a
    ranking is seen in full. Units that a ranking does not have come with all of them, in no order. A set of units that
    several curves share is evaluated once.
    """
    generator = np.random.default_rng(work.seed)
    shuffled = [[units[i] for i in generator.permutation(len(units))] for _ in range(draws)]
    orders = [(name, 0, list(order)) for name, order in rankings.items()]
    orders += [(RANDOM, draw, order) for draw, order in enumerate(shuffled)]
    sizes = sizes_tried(len(units), points)
    sets = {
        (name, draw, n): tuple(units if n == len(units) else order[:n])
        for name, draw, order in orders
        for n in sizes
        if n <= len(order) or n == len(units)
    }
    curve = pd.MultiIndex.from_tuples(list(sets), names=["ranking", "draw", "n"])
    prompts, parts = pd.Index(work.prompts, name="prompt_id"), []
    models: tuple[tuple[str, Model], ...] = ((FORWARD, "base"), (BACKWARD, "tuned"))
    for direction, model in models:
        _, table = work.under([Variant(model, some) for some in sets.values()])
        long = pd.DataFrame(table, curve, prompts).stack().rename("value").reset_index()
        parts.append(long.assign(direction=direction))
    every = pd.concat(parts, ignore_index=True).dropna(subset="value")
    return Curves(every, areas_of(every, work.clusters, floor_of(work.floors, ALL_DOMAINS)))


def areas_of(
    points: pd.DataFrame, clusters: Mapping[str, str] | None = None, floor: float = LEAST_FLOOR
) -> pd.DataFrame:
    """Per ranking, draw and direction: the mean share of the change over n = 0 … all, and the smallest n with ENOUGH.

    The area is under the share against n / all (trapezoids): 1 where the first unit does everything, 0.5 where all do
    the same. Shares are of the means over prompts, and may exceed 1; NaN where the metric does not change by more than
    `floor`. The area is then a ratio of two means over prompts, and its interval is that of the ratio's linear part;
    there is none where the change itself does not differ clearly from 0. `clusters` gives each prompt's.
    """
    rows = []
    for (ranking, draw, direction), curve in points.groupby(["ranking", "draw", "direction"], sort=False):
        table = curve.pivot(index="prompt_id", columns="n", values="value").dropna()
        moved, n = table.to_numpy() - table.to_numpy()[:, :1], table.columns.to_numpy(np.float64)
        change, gained = moved[:, -1], np.trapezoid(moved, n / n[-1], axis=1)
        row: dict[str, object] = {"ranking": ranking, "draw": draw, "direction": direction}
        if len(n) > 1 and abs(change.mean()) > floor:
            names = [(clusters or {}).get(str(prompt), str(prompt)) for prompt in table.index]
            area = gained.mean() / change.mean()
            enough = n[moved.mean(0) / change.mean() >= ENOUGH]
            row |= {"area": area, "n_enough": enough[0] if len(enough) else np.nan}
            if mean_interval(change, names).p < ALPHA:
                linear = mean_interval(area + (gained - area * change) / change.mean(), names)
                row |= {"lo": float(linear.lo), "hi": float(linear.hi)}
        rows.append(row)
    return pd.DataFrame(rows, columns=["ranking", "draw", "direction", "area", "lo", "hi", "n_enough"])


def sizes_tried(n: int, points: int | None) -> list[int]:
    """How many of n units are moved together, from none to all: `points` values besides none, or every one."""
    if points is None or points >= n:
        return list(range(n + 1))
    spaced = np.unique(np.rint(np.geomspace(1, n, points)).astype(int))
    return [0, *spaced.tolist()]
