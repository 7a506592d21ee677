"""Lineage: are vectors of a base lineage as easily negated as those of an instruct lineage?

Source: an open question of arXiv 2510.09359. A lineage is a parent and a model tuned from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from tv.arithmetic.controls import control
from tv.checkpoints.extraction import extract
from tv.checkpoints.live import LiveSource
from tv.errors import InputError
from tv.evaluation.paired import tables as by_item
from tv.evaluation.tasks import TaskSpec
from tv.experiments.bench import Bench, Point, Settings
from tv.experiments.curves import area, half, judge, shares
from tv.experiments.negating import SCALES, grid_of
from tv.experiments.plots import curves, primary_rows
from tv.experiments.result import Result
from tv.stats.resampling import ends

Lineage = tuple[LiveSource, LiveSource]


def lineage(
    lineages: Mapping[str, Lineage],
    tasks: TaskSpec | Sequence[TaskSpec],
    *,
    scales: Sequence[float] = SCALES,
    cross: bool = True,
    control_kind: str | None = "random",
    **settings: Any,
) -> Result:
    """θ_tuned − λT along each lineage (parent, tuned), on the same items, and how the two decay.

    With `cross`, the other lineages' vectors are subtracted too; `control_kind` negates a control of its own vector.
    Other settings are those of `Settings`; prompts go through the first parent's tokenizer unless one is given.

    Tables: `robustness`, a row per lineage, vector, task and metric whose tuned model differs from its parent: the λ at
    which half of the tuned behaviour is left (`half`, inf where it never is) and the mean of what is left over 0 ≤ λ ≤
    1 (`area`, ½ where it falls linearly), with intervals over items or clusters of them; `difference`, of every two
    lineages the first's minus the second's for their own vectors, on the same resamples; `lineage`, every point as
    `negation` has it, where `vector` says whose T was taken away; `items`. Raises InputError for fewer than two
    lineages or a vector that does not fit.
    """
    if len(lineages) < 2:
        raise InputError(f"{len(lineages)} lineage: two or more are compared; give NAME=PARENT:TUNED for each")
    first = next(iter(lineages.values()))[0]
    chosen = Settings("lineage", tasks, **{"tokenizer": first, **settings})
    cells, grid = chosen.cells(), grid_of(scales)
    chosen.load()
    vectors = {name: extract(parent, tuned) for name, (parent, tuned) in lineages.items()}
    frames, logs, robust = [], [], []
    for name, (parent, tuned) in lineages.items():
        taken = {"own": vectors[name]}
        taken |= {f"of {other}": vectors[other] for other in vectors if cross and other != name}
        taken |= {control_kind: control(vectors[name], control_kind, chosen.seed)} if control_kind else {}
        where = {f"{kind}, λ = {scale:g}": (kind, scale) for scale in grid for kind in taken}
        points = [Point(label, {taken[kind]: -scale}) for label, (kind, scale) in where.items()]
        parts = [Bench(parent, parent, chosen, cells, [tuned]).items([Point("parent")])]
        parts.append(Bench(tuned, parent, chosen, cells).items(points))
        items = pd.concat(parts, ignore_index=True)
        judged = judge(items, "own, λ = 0", "parent", draws=chosen.draws, seed=chosen.seed)
        judged = judged[judged.variant != "parent"]
        kinds = judged.variant.map(where)
        frames.append(judged.assign(lineage=name, vector=kinds.str[0], scale=kinds.str[1]).drop(columns="variant"))
        logs.append(items.assign(lineage=name))
        robust += _robustness(name, items, list(taken), grid, chosen)
    table = pd.concat(frames, ignore_index=True)
    table = table[["lineage", "vector", "scale", *table.columns.drop(["lineage", "vector", "scale"])]]
    tables = {
        "robustness": pd.DataFrame([row for row, *_ in robust], columns=_ROBUST),
        "difference": _differences(robust, list(lineages)),
        "lineage": table,
        "items": pd.concat(logs, ignore_index=True),
    }
    result = Result("lineage", tables, _figures(table, {t.name: next(iter(t.metrics)) for t in chosen.load()}))
    if chosen.out is not None:
        result.save(chosen.out)
    return result


_MEASURES = ("half", "area")
_ROBUST = [
    *("lineage", "vector", "task", "metric"),
    *(f"{name}{end}" for name in _MEASURES for end in ("", "_lo", "_hi")),
]
_Drawn = tuple[dict[str, Any], dict[str, float], dict[str, np.ndarray], int]


def _robustness(name: str, items: pd.DataFrame, kinds: list[str], grid: list[float], chosen: Settings) -> list[_Drawn]:
    """Rows of `robustness`, each with its measures in the mean and in every resample of so many units."""
    robust: list[_Drawn] = []
    scales = np.array(grid)
    for (task, metric), table, clusters in by_item(items):
        share, units = shares(table, clusters, "own, λ = 0", "parent", chosen.draws, chosen.seed), len(set(clusters))
        if np.isnan(share.mean).all():
            continue
        for kind in kinds:
            at = [table.columns.get_loc(f"{kind}, λ = {scale:g}") for scale in grid]
            mean = {"half": float(half(scales, share.mean[at])), "area": float(area(scales, share.mean[at]))}
            drawn = {"half": half(scales, share.drawn[:, at]), "area": area(scales, share.drawn[:, at])}
            row: dict[str, Any] = {"lineage": name, "vector": kind, "task": task, "metric": metric}
            for measure in _MEASURES:
                row |= {measure: mean[measure]} | _interval(measure, drawn[measure], units)
            robust.append((row, mean, drawn, units))
    return robust


def _differences(robust: list[_Drawn], names: list[str]) -> pd.DataFrame:
    """Of every two lineages, on the tasks that both changed, by their own vectors."""
    measured = {
        (row["lineage"], row["task"], row["metric"]): (mean, drawn, units)
        for row, mean, drawn, units in robust
        if row["vector"] == "own"
    }
    rows = []
    for first, second in combinations(names, 2):
        for name, task, metric in measured:
            if name != first or (second, task, metric) not in measured:
                continue
            (mean_a, drawn_a, units), (mean_b, drawn_b, _) = (measured[one, task, metric] for one in (first, second))
            row: dict[str, Any] = {"first": first, "second": second, "task": task, "metric": metric}
            for measure in _MEASURES:
                with np.errstate(invalid="ignore"):  # inf − inf: neither is ever half gone
                    row |= {measure: mean_a[measure] - mean_b[measure]}
                    row |= _interval(measure, drawn_a[measure] - drawn_b[measure], units)
            rows.append(row)
    return pd.DataFrame(rows, columns=["first", "second", *_ROBUST[2:]])


def _interval(name: str, drawn: np.ndarray, units: int) -> dict[str, float]:
    return {f"{name}_{side}": float(value) for side, value in zip(("lo", "hi"), ends(drawn, units), strict=True)}


def _figures(table: pd.DataFrame, primary: Mapping[str, str]) -> dict[str, Any]:
    shown = primary_rows(table, primary)
    shown = shown.assign(panel=shown.task + ": " + shown.metric, line=shown.lineage + ", " + shown.vector)
    axes: dict[str, Any] = {"x": "scale", "line": "line", "panel": "panel", "x_title": "λ"}
    figures = {"What is left as λ grows": curves(shown, y="value", lo="lo", hi="hi", y_title="mean", **axes)}
    told = shown[shown.retained.notna() & (shown.vector == "own")]
    if len(told):
        figures["Retained of what tuning brought, by lineage"] = curves(
            told, y="retained", lo="retained_lo", hi="retained_hi", y_title="retained", **axes
        )
    return figures
