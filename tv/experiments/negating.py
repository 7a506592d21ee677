"""Negation: does behaviour follow the vector? θ_tuned − λT, beside a random vector of T's norms.

Source: arXiv 2212.04089 §3 and arXiv 2510.09359 (negating a tuning vector takes the tuned behaviour away).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tv.arithmetic.controls import control
from tv.checkpoints.extraction import extract
from tv.checkpoints.live import LiveSource
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError
from tv.evaluation.tasks import TaskSpec
from tv.experiments.bench import Bench, Point, Settings
from tv.experiments.curves import judge
from tv.experiments.parts import By, parts_of
from tv.experiments.plots import curves, primary_rows
from tv.experiments.result import Result

_ROUNDING = 1e-4  # how much float32 logits of identical models may differ
SCALES = tuple(round(0.1 * i, 1) for i in range(16))


def negation(
    base: LiveSource,
    tuned: Mapping[str, LiveSource],
    tasks: TaskSpec | Sequence[TaskSpec],
    *,
    scales: Sequence[float] = SCALES,
    parts: By = "whole",
    controls: Sequence[str] = ("random",),
    **settings: Any,
) -> Result:
    """Every task at θ_tuned − λT, for each tuned model and each λ (0 and 1 always among them).

    `parts` also negates T's components or layers by themselves; `controls` are those of `tv.CONTROLS`, each negated in
    T's place. Other settings are those of `Settings`; with `out`, finished cells are reused.

    Tables: `negation`, a row per tuned model, part, vector (`T` or a control), λ, task and metric: the mean with its
    interval, its difference from the base, what of the tuned behaviour is retained (see `tv.experiments.curves.judge`);
    q is over one tuned model's rows. `summary`, at λ = 1: `returned`, "no" where it differs from the base, "yes" where
    it differs from the tuned model (`p_tuned` < 0.05), is within half of that from the base (the whole interval is),
    and no control does the same, else "cannot tell"; and `follows`, Spearman's ρ between 1 − λ and the retained share
    over 0 ≤ λ ≤ 1. `items`, everything item by item. Raises InputError for bad scales, parts, tasks, or a vector that
    does not fit.
    """
    chosen = Settings("negation", tasks, **settings)
    grid = grid_of(scales)
    cells = chosen.cells()
    chosen.load()
    under = Bench(base, base, chosen, cells, tuned.values()).items([Point("base")])
    frames, logs = [], []
    for name, source in tuned.items():
        vector = source if isinstance(source, TuningVector) else extract(base, source)
        places, points = _points(vector, base, grid, parts, controls, chosen.seed)
        items = pd.concat([under, Bench(source, base, chosen, cells, tuned.values()).items(points)], ignore_index=True)
        judged = judge(items, points[0].name, "base", draws=chosen.draws, seed=chosen.seed)
        frames.append(places.merge(judged, on="variant").assign(tuned=name))
        logs.append(items.assign(tuned=name))
    table = pd.concat(frames, ignore_index=True)
    table = table[["tuned", *table.columns.drop(["tuned", "variant"])]]
    primary = {task.name: next(iter(task.metrics)) for task in chosen.load()}
    tables = {"negation": table, "summary": _summary(table), "items": pd.concat(logs, ignore_index=True)}
    result = Result("negation", tables, _figures(table, primary))
    if chosen.out is not None:
        result.save(chosen.out)
    return result


def grid_of(scales: Sequence[float]) -> list[float]:
    """Ascending, each once, 0 and 1 among them. Raises InputError for a λ that is not finite."""
    if not all(np.isfinite(scales)):
        raise InputError("scales: each λ is a finite number")
    return sorted({round(float(scale), 9) + 0.0 for scale in (*scales, 0.0, 1.0)})


def _points(
    vector: TuningVector, base: LiveSource, grid: Sequence[float], parts: By, controls: Sequence[str], seed: int
) -> tuple[pd.DataFrame, list[Point]]:
    """The points, the tuned model first, and a table that says what each is."""
    moved = {
        (part, kind): part_vector if kind == "T" else control(part_vector, kind, seed)
        for part, part_vector in parts_of(vector, base, parts).items()
        for kind in ("T", *controls)
    }
    ordered = [0.0, *(scale for scale in grid if scale != 0)]
    rows, points = [], []
    for scale in ordered:
        for (part, kind), part_vector in moved.items():
            label = f"{part}, {kind}, λ = {scale:g}"
            rows.append({"variant": label, "part": part, "vector": kind, "scale": scale})
            points.append(Point(label, {part_vector: -scale}))
    return pd.DataFrame(rows), points


_WHERE = ["tuned", "part", "task", "metric"]


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    by = ["tuned", "part", "vector", "task", "metric"]
    for where, curve in table.groupby(by, sort=False):
        at = curve.set_index("scale")
        inside = curve[(curve.scale >= 0) & (curve.scale <= 1) & curve.retained.notna()]
        follows = (
            (1 - inside.scale).corr(inside.retained, method="spearman") if inside.retained.nunique() > 1 else np.nan
        )
        one = at.loc[1.0]
        rows.append(
            dict(zip(by, where, strict=True))
            | {"value_0": at.value[0.0], "value_1": one.value, "difference": one.difference}
            | {"difference_lo": one.difference_lo, "difference_hi": one.difference_hi, "p": one.p}
            | {"p_tuned": one.p_start, "returned": _returned(one, abs(at.value[0.0] - one.value + one.difference))}
            | {"retained": one.retained, "retained_lo": one.retained_lo, "retained_hi": one.retained_hi}
            | {"follows": follows}
        )
    summary = pd.DataFrame(rows)
    of_controls = summary[summary.vector != "T"].groupby(_WHERE, sort=False).returned
    also = of_controls.agg(lambda said: "yes" in set(said))
    for i, row in summary[(summary.vector == "T") & (summary.returned == "yes")].iterrows():
        if also.get(tuple(row[_WHERE]), False):
            summary.loc[i, "returned"] = "cannot tell"
    return summary


def _returned(one: pd.Series, brought: float) -> str:
    """Whether the base's behaviour is back at λ = 1, as far as this vector's own tests say.

    `brought` is the size of what tuning brought: an interval that reaches half of it is too wide to say so.
    """
    same = abs(one.difference) <= _ROUNDING
    if one.p < 0.05 and not same:
        return "no"
    near = max(abs(one.difference_lo), abs(one.difference_hi)) < brought / 2
    return "yes" if one.p_start < 0.05 and (near or (same and one.test == "mean")) else "cannot tell"


def _figures(table: pd.DataFrame, primary: Mapping[str, str]) -> dict[str, Any]:
    """A figure per tuned model: the tasks' primary metrics; with parts, one more of what each retains."""
    shown = primary_rows(table, primary)
    shown = shown.assign(panel=shown.task + ": " + shown.metric, line=shown.part + ", " + shown.vector)
    axes: dict[str, Any] = {"x": "scale", "line": "line", "panel": "panel", "x_title": "λ"}
    figures = {}
    for name, rows in shown.groupby("tuned", sort=False):
        whole = rows[rows.part == "whole"]
        figures[f"{name} − λT: what it does"] = curves(whole, y="value", lo="lo", hi="hi", y_title="mean", **axes)
        told = rows[rows.retained.notna()]
        if rows.part.nunique() > 1 and len(told):
            figures[f"{name} − λT, part by part: what is retained"] = curves(
                told, y="retained", lo="retained_lo", hi="retained_hi", y_title="retained", **axes
            )
    return figures
