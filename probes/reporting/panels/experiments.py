"""Behaviour curves of the experiments whose results lie in the run: negation and addition of tuning vectors."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from probes.errors import RunError
from probes.reporting.chapter import Chapter, panel
from probes.reporting.charts import COLOURS
from probes.reporting.figures import Plot, layout, plains
from probes.reporting.panel import Figure, Panel
from probes.store.run import Run

#: Where a run's experiments lie: `tv experiment negation … -o RUN/experiments/negation`.
FOLDER = "experiments"
_READ = {
    "negation": ["tuned", "part", "vector", "scale", "task", "metric", "value", "lo", "hi"],
    "addition": ["subset", "method", "scales", "task", "value", "lo", "hi", "base"],
}


@panel("experiments", order=10)
def experiments(chapter: Chapter) -> list[Panel]:
    """What negating and adding this model's tuning vector does, where the run's directory holds such experiments."""
    panels: list[Panel] = []
    for kind, name, rows in _tables(chapter.run):
        figure_id, tuned = f"{kind}-{len(panels)}", chapter.evidence.tuned
        if kind == "negation":
            whole = rows[(rows.tuned == tuned) & (rows.part == "whole")]
            panels += [_negation(figure_id, name, whole)] * bool(len(whole))
        else:
            added = rows[[tuned in subset.split(" + ") for subset in rows.subset]]
            panels += [_addition(figure_id, name, added)] * bool(len(added))
    return panels


def _tables(run: Run) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(kind, directory's name, table) of every finished experiment."""
    if not isinstance(run.path, Path):
        return
    for folder in sorted(path for path in (run.path / FOLDER).glob("*") if path.is_dir()):
        for kind, columns in _READ.items():
            path = folder / f"{kind}.parquet"
            if not path.is_file():
                continue
            try:
                yield kind, folder.name, pq.read_table(path, columns=columns).to_pandas()
            except (pa.ArrowException, OSError) as error:
                problem = str(error).split("\n")[0]
                raise RunError(f"{path}: not the table of an experiment: {problem}; make it again") from error


def _negation(figure_id: str, name: str, rows: pd.DataFrame) -> Panel:
    families = list(rows.groupby(["task", "metric"], sort=False))
    plots = [_along(family, str(metric)) for (_, metric), family in families]
    note = (
        "θ − λT of the tuned model: at λ = 1 its weights are the base's, and beyond that more than the tuning is taken "
        "away. What a control of the same norms takes away too is damage and not forgetting. Bands are 95 % intervals."
    )
    figure = Figure(figure_id, "Mean over items", plots)
    return Panel(f"Negation ({name})", note, [figure], [f"{task}: {metric}" for (task, metric), _ in families], "task")


def _along(rows: pd.DataFrame, metric: str) -> Plot:
    traces: list[Plot] = []
    for i, (vector, points) in enumerate(rows.groupby("vector", sort=False)):
        points, colour = points.sort_values("scale"), COLOURS[i % len(COLOURS)]
        label = "T" if vector == "T" else f"{vector} control"
        x = plains(points.scale)
        band = {"x": x + x[::-1], "y": plains(points.hi) + plains(points.lo)[::-1], "fill": "toself", "opacity": 0.2}
        hidden = {"mode": "lines", "line": {"width": 0}, "fillcolor": colour, "showlegend": False, "hoverinfo": "skip"}
        traces.append({"type": "scatter", "name": f"{label}, interval", **band, **hidden})
        line = {"mode": "lines+markers", "line": {"color": colour}, "marker": {"symbol": i, "size": 7}}
        traces.append(
            {"type": "scatter", "x": x, "y": plains(points.value), "name": html.escape(label), **line}
            | {"hovertemplate": "λ = %{x}: %{y:.4g}"}
        )
    return {"data": traces, "layout": layout(x="λ", y=metric, height=340, legend=True)}


def _addition(figure_id: str, name: str, rows: pd.DataFrame) -> Panel:
    tasks = list(dict.fromkeys(rows.task))
    plots = [_beside(rows[rows.task == task]) for task in tasks]
    note = (
        "θ + Σ λT for every subset that holds this vector, each method at the λ that was best on the other half of the "
        "items. Dashed: the base. Bars are 95 % intervals over items."
    )
    return Panel(f"Addition ({name})", note, [Figure(figure_id, "Mean over held-out items", plots)], tasks, "task")


def _beside(rows: pd.DataFrame) -> Plot:
    traces = []
    for i, (method, subsets) in enumerate(rows.groupby("method", sort=False)):
        subsets = subsets[::-1]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": plains(subsets.value),
                "y": [html.escape(subset) for subset in subsets.subset],
                "name": html.escape(str(method)),
                "marker": {"size": 9, "color": COLOURS[i % len(COLOURS)], "symbol": i},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": plains(subsets.hi - subsets.value),
                    "arrayminus": plains(subsets.value - subsets.lo),
                    "color": COLOURS[i % len(COLOURS)],
                },
                "customdata": [f"λ = {html.escape(str(scales))}" for scales in subsets.scales],
                "hovertemplate": "%{y}: %{x:.4g}, %{customdata}",
            }
        )
    base = float(rows.base.iloc[0])
    dashed = {"type": "line", "x0": base, "x1": base, "y0": 0, "y1": 1, "yref": "paper"}
    line = {**dashed, "line": {"dash": "dash", "color": "#888"}}
    height = 120 + 34 * rows.subset.nunique()
    return {
        "data": traces,
        "layout": layout(x="mean", height=height, legend=True, yaxis={"type": "category"}, shapes=[line]),
    }
