"""Addition: what tuning vectors of several domains do together, by every method, against the best of them alone.

Sources: arXiv 2212.04089 §4 (addition), arXiv 2510.09359. λ is chosen on one half of the items and reported on the
other, so that no gain comes from the choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, compress, product
from typing import Any, Literal

import numpy as np
import pandas as pd

from tv.arithmetic.methods.terms import METHODS
from tv.checkpoints.extraction import extract
from tv.checkpoints.live import LiveSource
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError, choices
from tv.evaluation.paired import difference, means, tables as by_item
from tv.evaluation.tasks import TaskSpec
from tv.experiments.bench import Bench, Point, Settings
from tv.experiments.plots import bars, matrix
from tv.experiments.result import Result
from tv.measures.cosine import cosine
from tv.runtime.compute import Compute

SCALES = (0.3, 0.5, 0.7, 1.0)
Grid = Literal["common", "product"]
_MEAN = "mean over tasks"


def addition(
    base: LiveSource,
    tuned: Mapping[str, LiveSource | TuningVector],
    tasks: TaskSpec | Sequence[TaskSpec],
    *,
    methods: Sequence[str] = ("sum",),
    scales: Sequence[float] = SCALES,
    grid: Grid = "common",
    targets: Mapping[str, Sequence[str]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Result:
    """θ_base moved by every subset of the vectors, by every method, over the λ grid.

    `grid` gives all vectors of a subset one λ, or every combination of them (`product`). `targets` says which tasks a
    vector is for: a subset is judged by the mean over its members' tasks; without it, by the mean over all tasks. Each
    task's first metric counts. `options` are those of a method, by its name. Other settings are those of
    `Settings`.

    Tables: `chosen`, a row per subset, method and task (and their mean): the best λ on one half of the items and there
    the mean on the other, with its interval; `best_single` and `gain` over it, item by item and above 0 where it is
    better (the single vector of the subset that did best on the first half, at its own best λ), with interval and p;
    beside it the conflict of the subset's vectors, means over pairs (see `tv.cosine`). `transfer`, every vector alone
    at λ = 1 on every task, against the base, on all items. `conflict`, the pairs. `points`, every point on every half.
    `items`. Raises InputError for an unknown method, task or vector.
    """
    chosen = Settings("addition", tasks, **settings)
    if not tuned or not scales:
        raise InputError("addition needs at least one tuned side and one scale")
    odd = next((method for method in methods if method not in METHODS), None)
    if odd is not None:
        raise InputError(f"no method {odd!r}{choices(odd, METHODS)}")
    primary = {task.name: next(iter(task.metrics)) for task in chosen.load()}
    better = {task.name: task.metrics[primary[task.name]] for task in chosen.load()}
    goals = _goals(tuned, targets, list(primary))
    vectors = {n: side if isinstance(side, TuningVector) else extract(base, side) for n, side in tuned.items()}
    bench = Bench(base, base, chosen, chosen.cells(), tuned.values())
    spots, frames = _spots(list(vectors), methods, scales, grid), [bench.items([Point("base")])]
    for method in dict.fromkeys(spots.method):
        method_spots = spots[spots.method == method]
        points = [
            Point(spot.variant, {vectors[name]: at for name, at in zip(spot.subset, spot.scales, strict=True)})
            for spot in method_spots.itertuples()
        ]
        frames.append(bench.items(points, method=method, **((options or {}).get(method, {}))))
    items = pd.concat(frames, ignore_index=True)
    values = _values(items, primary)
    halves = {task: _half(task_items.values.index, chosen.seed) for task, task_items in values.items()}
    conflict = _conflict(base, tuned, chosen.compute.silent())
    table = _chosen(spots, values, halves, goals, better)
    table = table.merge(_conflicts(conflict, {tuple(s) for s in spots.subset}), on="subset", how="left")
    tables = {
        "chosen": table,
        "transfer": _transfer(spots, values, better),
        "conflict": conflict,
        "points": _points(spots, values, halves),
        "items": items,
    }
    result = Result("addition", tables, _figures(tables))
    if chosen.out is not None:
        result.save(chosen.out)
    return result


def _goals(
    tuned: Mapping[str, object], targets: Mapping[str, Sequence[str]] | None, tasks: list[str]
) -> dict[str, list[str]]:
    """Vector → the tasks that it is for."""
    for name, goals in (targets or {}).items():
        if name not in tuned:
            raise InputError(f"target of {name!r}: no such vector{choices(name, tuned)}")
        odd = next((task for task in goals if task not in tasks), None)
        if odd is not None:
            raise InputError(f"target {odd!r} of {name!r}: no such task{choices(odd, tasks)}")
    return {name: list((targets or {}).get(name, tasks)) for name in tuned}


def _spots(names: list[str], methods: Sequence[str], scales: Sequence[float], grid: Grid) -> pd.DataFrame:
    """Every point: subset, method, λ of each of its vectors. Each vector alone at λ = 1 is always there, as a sum."""
    if grid not in ("common", "product"):
        raise InputError(f"grid {grid!r}: common or product")
    rows: dict[str, dict[str, Any]] = {}
    wanted: list[tuple[tuple[str, ...], str, tuple[float, ...]]] = []
    for size in range(1, len(names) + 1):
        for subset, method in product(combinations(names, size), methods):
            at = product(scales, repeat=size) if grid == "product" else ((value,) * size for value in scales)
            wanted += [(subset, method, lambdas) for lambdas in at]
    for subset, method, lambdas in [*wanted, *(((name,), "sum", (1.0,)) for name in names)]:
        label = " + ".join(f"{scale:g} {name}" for scale, name in zip(lambdas, subset, strict=True))
        label = f"{method}: {label}"
        rows[label] = {"variant": label, "subset": subset, "method": method, "scales": lambdas}
    return pd.DataFrame(list(rows.values()))


@dataclass(frozen=True)
class _Items:
    """One task's first metric."""

    metric: str
    values: pd.DataFrame  # a row an item, a column a variant
    clusters: list[str]  # of each item

    def half(self, chosen: np.ndarray) -> _Items:
        return _Items(self.metric, self.values[chosen], list(compress(self.clusters, chosen)))


def _values(items: pd.DataFrame, primary: Mapping[str, str]) -> dict[str, _Items]:
    """Task → its items. Raises InputError for fewer than two."""
    by_task: dict[str, _Items] = {}
    for (task, metric), table, clusters in by_item(items):
        # What the harness calls a perplexity has another name an item, and stands alone.
        if task not in by_task or metric.split(",")[0] == primary[task] != by_task[task].metric:
            by_task[task] = _Items(metric.split(",")[0], table, clusters)
        if len(table) < 2:
            raise InputError(f"task {task}: {len(table)} item; λ is chosen on one half and reported on the other")
    return by_task


def _half(ids: pd.Index, seed: int) -> np.ndarray:
    """True for the items that λ is chosen on: a seeded half."""
    order = np.random.default_rng(seed).permutation(len(ids))
    chosen = np.zeros(len(ids), bool)
    chosen[order[: len(ids) // 2]] = True
    return chosen


def _score(
    variant: str,
    tasks: Sequence[str],
    values: Mapping[str, _Items],
    halves: Mapping[str, np.ndarray],
    better: Mapping[str, bool],
) -> float:
    """The mean over tasks on the half that λ is chosen on; a lower-is-better metric counts negatively."""
    scores = [values[task].half(halves[task]).values[variant].mean() * (1 if better[task] else -1) for task in tasks]
    return float(np.mean(scores))


def _chosen(
    spots: pd.DataFrame,
    values: Mapping[str, _Items],
    halves: Mapping[str, np.ndarray],
    goals: Mapping[str, list[str]],
    better: Mapping[str, bool],
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (subset, method), candidates in spots.groupby(["subset", "method"], sort=False):
        tasks = list(dict.fromkeys(task for name in subset for task in goals[name]))
        best = max(candidates.variant, key=lambda variant: _score(variant, tasks, values, halves, better))
        singles = spots[(spots.subset.map(len) == 1) & spots.subset.map(lambda s, of=subset: set(s) <= set(of))]
        single = max(singles.variant, key=lambda variant: _score(variant, tasks, values, halves, better))
        scales = candidates.set_index("variant").scales[best]
        where = {"subset": " + ".join(subset), "method": method, "scales": ", ".join(f"{s:g}" for s in scales)}
        held_out = {task: values[task].half(~halves[task]) for task in tasks}
        for task, report in _reported(best, single, held_out, better):
            rows.append(where | {"task": task, "best_single": single} | report)
    return pd.DataFrame(rows)


def _reported(
    best: str, single: str, held_out: Mapping[str, _Items], better: Mapping[str, bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each task on the other half, then their mean: value, base, and the gain over the single vector."""
    bases: list[float] = []
    values: list[_Estimate] = []
    gains: list[_Estimate] = []
    for task, items in held_out.items():
        table = items.values
        found = difference(table[single], table[best], items.clusters)
        gain = (found.difference, found.lo, found.hi)
        mean, lo, hi = means(table[[best]].to_numpy(), items.clusters)
        bases.append(float(table["base"].mean()))
        values.append((mean[0], lo[0], hi[0]))
        gains.append(gain if better[task] else (-gain[0], -gain[2], -gain[1]))
        yield task, _row(values[-1], gains[-1], bases[-1], len(table)) | {"p": found.p}
    n = sum(len(items.values) for items in held_out.values())
    yield _MEAN, _row(_over_tasks(values), _over_tasks(gains), float(np.mean(bases)), n) | {"p": np.nan}


_Estimate = tuple[float, float, float]  # mean, lo, hi


def _over_tasks(estimates: Sequence[_Estimate]) -> _Estimate:
    """The mean of independent estimates with an interval made of theirs.

    Source: G. Y. Zou and A. Donner (2008), Stat. Med. 27: distances of ends from their estimates add up in squares.
    """
    mean, lo, hi = np.array(estimates).T
    below, above = (float(np.sqrt((gap**2).sum())) / len(mean) for gap in (mean - lo, hi - mean))
    return float(mean.mean()), float(mean.mean()) - below, float(mean.mean()) + above


def _row(value: _Estimate, gain: _Estimate, base: float, n: int) -> dict[str, Any]:
    row = dict(zip(("value", "lo", "hi"), value, strict=True)) | {"n": n, "base": base}
    return row | dict(zip(("gain", "gain_lo", "gain_hi"), gain, strict=True))


def _transfer(spots: pd.DataFrame, values: Mapping[str, _Items], better: Mapping[str, bool]) -> pd.DataFrame:
    """Each vector alone at λ = 1: its mean, and its difference from the base."""
    rows = []
    alone = spots[spots.subset.map(len) == 1]
    for name in dict.fromkeys(subset[0] for subset in alone.subset):
        for task, items in values.items():
            own = items.values[f"sum: 1 {name}"]
            mean, lo, hi = means(own.to_numpy()[:, None], items.clusters)
            change = difference(items.values["base"], own, items.clusters)
            row = {"vector": name, "task": task, "higher_is_better": better[task]}
            row |= {"value": mean[0], "lo": lo[0], "hi": hi[0], "change": change.difference}
            rows.append(row | {"change_lo": change.lo, "change_hi": change.hi, "p": change.p, "n": len(own)})
    return pd.DataFrame(rows)


def _points(spots: pd.DataFrame, values: Mapping[str, _Items], halves: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Every point on the half that λ is chosen on and on the half that is reported."""
    told = {
        row.variant: (" + ".join(row.subset), row.method, ", ".join(f"{s:g}" for s in row.scales))
        for row in spots.itertuples()
    }
    frames = []
    for task, items in values.items():
        for half, rows in (("choose", halves[task]), ("report", ~halves[task])):
            own = items.half(rows)
            mean, lo, hi = means(own.values.to_numpy(), own.clusters)
            where = {"variant": own.values.columns, "task": task, "half": half}
            frames.append(pd.DataFrame(where | {"value": mean, "lo": lo, "hi": hi, "n": int(rows.sum())}))
    frame = pd.concat(frames, ignore_index=True)
    parts = frame.variant.map(lambda variant: told.get(variant, ("base", "", "")))
    where = {name: parts.str[i] for i, name in enumerate(("subset", "method", "scales"))}
    return pd.concat([pd.DataFrame(where), frame.drop(columns="variant")], axis=1)


def _conflict(base: LiveSource, tuned: Mapping[str, LiveSource | TuningVector], compute: Compute) -> pd.DataFrame:
    """`tv.cosine` of the whole vectors; empty with one vector."""
    if len(tuned) < 2:
        return pd.DataFrame(columns=["a", "b", *_CONFLICTS])
    pairs = cosine(base, tuned, level="whole", compute=compute)
    return pairs[["a", "b", *_CONFLICTS]]


_CONFLICTS = ["cosine", "sign_conflict", "sign_conflict_null", "conflict_energy"]


def _conflicts(pairs: pd.DataFrame, subsets: set[tuple[str, ...]]) -> pd.DataFrame:
    """Means over the pairs inside each subset; NaN for a single vector."""
    rows = []
    for subset in sorted(subsets):
        inside = pairs[pairs.a.isin(subset) & pairs.b.isin(subset)]
        rows.append({"subset": " + ".join(subset), **{name: inside[name].mean() for name in _CONFLICTS}})
    return pd.DataFrame(rows)


def _figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    chosen, transfer = tables["chosen"], tables["transfer"]
    means = chosen[chosen.task == _MEAN]
    figures = {
        "Each subset at its chosen λ, mean over its tasks, on the other half of the items": bars(
            means, x=["subset"], y="value", lo="lo", hi="hi", group="method", y_title="mean"
        )
    }
    several = means[means.subset.str.contains(" + ", regex=False)]
    if len(several):
        figures["Gain over the best single vector"] = bars(
            several, x=["subset"], y="gain", lo="gain_lo", hi="gain_hi", group="method", y_title="gain"
        )
    figures["Transfer: each vector alone, λ = 1"] = matrix(
        transfer, row="vector", column="task", value="value", title="mean"
    )
    return figures
