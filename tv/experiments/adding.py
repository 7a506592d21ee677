"""Addition: what tuning vectors of several domains do together, by every method, against the best of them alone.

Sources: arXiv 2212.04089 §4 (addition), arXiv 2510.09359. λ is chosen on one half of the items and reported on the
other, so that no gain comes from the choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, Literal

import numpy as np
import pandas as pd

from tv.arithmetic.methods.terms import METHODS
from tv.checkpoints.extraction import extract
from tv.checkpoints.live import LiveSource
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError
from tv.evaluation.paired import mcnemar_p, tables as by_item
from tv.evaluation.tasks import TaskSpec
from tv.experiments.bench import Bench, Point, Settings
from tv.experiments.plots import bars, matrix
from tv.experiments.result import Result
from tv.measures.cosine import cosine
from tv.runtime.compute import Compute
from tv.stats.resampling import bootstrap_mean, resample_means

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
    the mean on the other, with its interval; `best_single` and `gain` over it, item by item (the single vector of the
    subset that did best on the first half, at its own best λ), with interval and p; beside it the conflict of the
    subset's vectors, means over pairs (see `tv.cosine`). `transfer`, every vector alone at λ = 1 on every task, against
    the base, on all items. `conflict`, the pairs. `points`, every point on every half. `items`. Raises InputError for
    an unknown method, task or vector.
    """
    chosen = Settings("addition", tasks, **settings)
    if not tuned or not scales:
        raise InputError("addition needs a tuned side and a scale at the least")
    odd = next((method for method in methods if method not in METHODS), None)
    if odd is not None:
        raise InputError(f"method {odd!r}: one of {', '.join(METHODS)}")
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
    halves = {task: _half(table.index, chosen.seed) for task, table in values.items()}
    conflict = _conflict(base, tuned, chosen.compute.silent())
    table = _chosen(spots, values, halves, goals, better, chosen)
    table = table.merge(_conflicts(conflict, {tuple(s) for s in spots.subset}), on="subset", how="left")
    tables = {
        "chosen": table,
        "transfer": _transfer(spots, values, better, chosen),
        "conflict": conflict,
        "points": _points(spots, values, halves, chosen),
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
            raise InputError(f"target of {name!r}: no vector of this name; there are {', '.join(tuned)}")
        odd = next((task for task in goals if task not in tasks), None)
        if odd is not None:
            raise InputError(f"target {odd!r} of {name!r}: no such task; there are {', '.join(tasks)}")
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


def _values(items: pd.DataFrame, primary: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Task → its first metric, a row an item and a column a variant. Raises InputError for fewer than two items."""
    by_task: dict[str, pd.DataFrame] = {}
    for (task, metric), table in by_item(items):
        # What the harness calls a perplexity has another name an item, and stands alone.
        if task not in by_task or metric.split(",")[0] == primary[task] != by_task[task].attrs["metric"]:
            by_task[task] = table
            by_task[task].attrs["metric"] = metric.split(",")[0]
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
    values: Mapping[str, pd.DataFrame],
    halves: Mapping[str, np.ndarray],
    better: Mapping[str, bool],
) -> float:
    """The mean over tasks on the half that λ is chosen on; a lower-is-better metric counts negatively."""
    means = [values[task].loc[halves[task], variant].mean() * (1 if better[task] else -1) for task in tasks]
    return float(np.mean(means))


def _chosen(
    spots: pd.DataFrame,
    values: Mapping[str, pd.DataFrame],
    halves: Mapping[str, np.ndarray],
    goals: Mapping[str, list[str]],
    better: Mapping[str, bool],
    settings: Settings,
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (subset, method), candidates in spots.groupby(["subset", "method"], sort=False):
        tasks = list(dict.fromkeys(task for name in subset for task in goals[name]))
        best = max(candidates.variant, key=lambda variant: _score(variant, tasks, values, halves, better))
        singles = spots[(spots.subset.map(len) == 1) & spots.subset.map(lambda s, of=subset: set(s) <= set(of))]
        single = max(singles.variant, key=lambda variant: _score(variant, tasks, values, halves, better))
        scales = candidates.set_index("variant").scales[best]
        where = {"subset": " + ".join(subset), "method": method, "scales": ", ".join(f"{s:g}" for s in scales)}
        for task, report in _reported(best, single, tasks, values, halves, settings):
            rows.append(where | {"task": task, "best_single": single} | report)
    return pd.DataFrame(rows)


def _reported(
    best: str,
    single: str,
    tasks: Sequence[str],
    values: Mapping[str, pd.DataFrame],
    halves: Mapping[str, np.ndarray],
    settings: Settings,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each task on the other half, then their mean: value, base, and the gain over the single vector."""
    held_out = {task: values[task].loc[~halves[task], [best, single, "base"]].to_numpy() for task in tasks}
    drawn, means = [], []
    for i, (task, table) in enumerate(held_out.items()):
        gain = table[:, 0] - table[:, 1]
        both = np.column_stack([table[:, 0], gain])
        mean, lo, hi = bootstrap_mean(both, settings.draws, settings.seed + i)
        drawn.append(resample_means(both, settings.draws, settings.seed + i))
        means.append([*mean, float(np.nanmean(table[:, 2]))])
        binary = bool(np.isin(table, (0.0, 1.0)).all())
        p = mcnemar_p(table[:, 1], table[:, 0]) if binary else np.nan
        yield task, _row(means[-1], lo, hi, len(table)) | {"p": p}
    mean, every = np.mean(means, 0), np.mean(drawn, 0)  # items of different tasks are drawn independently
    lo, hi = np.quantile(every, [0.025, 0.975], axis=0)
    yield _MEAN, _row(list(mean), lo, hi, sum(map(len, held_out.values()))) | {"p": np.nan}


def _row(mean: Sequence[float], lo: np.ndarray, hi: np.ndarray, n: int) -> dict[str, Any]:
    gain = {"gain": mean[1], "gain_lo": lo[1], "gain_hi": hi[1]}
    return {"value": mean[0], "lo": lo[0], "hi": hi[0], "n": n, "base": mean[2], **gain}


def _transfer(
    spots: pd.DataFrame, values: Mapping[str, pd.DataFrame], better: Mapping[str, bool], settings: Settings
) -> pd.DataFrame:
    """Each vector alone at λ = 1: its mean, and its difference from the base."""
    rows = []
    alone = spots[spots.subset.map(len) == 1]
    for name in dict.fromkeys(subset[0] for subset in alone.subset):
        variant = f"sum: 1 {name}"
        for task, table in values.items():
            pair = np.column_stack([table[variant], table[variant] - table["base"]])
            mean, lo, hi = bootstrap_mean(pair, settings.draws, settings.seed)
            row = {"vector": name, "task": task, "higher_is_better": better[task], "value": mean[0], "lo": lo[0]}
            row |= {"hi": hi[0], "change": mean[1], "change_lo": lo[1], "change_hi": hi[1], "n": len(table)}
            rows.append(row)
    return pd.DataFrame(rows)


def _points(
    spots: pd.DataFrame, values: Mapping[str, pd.DataFrame], halves: Mapping[str, np.ndarray], settings: Settings
) -> pd.DataFrame:
    """Every point on the half that λ is chosen on and on the half that is reported."""
    told = {
        row.variant: (" + ".join(row.subset), row.method, ", ".join(f"{s:g}" for s in row.scales))
        for row in spots.itertuples()
    }
    frames = []
    for task, table in values.items():
        for half, rows in (("choose", halves[task]), ("report", ~halves[task])):
            mean, lo, hi = bootstrap_mean(table[rows].to_numpy(), settings.draws, settings.seed)
            frame = pd.DataFrame(
                {"variant": table.columns, "task": task, "half": half, "value": mean, "lo": lo, "hi": hi}
            )
            frames.append(frame.assign(n=int(rows.sum())))
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


_CONFLICTS = ["cosine", "cosine_z", "sign_conflict", "sign_conflict_null", "conflict_energy"]


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
