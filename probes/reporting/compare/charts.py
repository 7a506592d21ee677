"""The figures that compare entries: values by name, lines over depth and over the order, a matrix of entries."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.reporting.charts import COLOURS
from probes.reporting.figures import Plot, layout, plains, square

#: As many as there are colours, so that its shape identifies an entry as well.
SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star")
_DASHES = ("solid", "dash", "dot", "dashdot")
_GREY = "#888"


def by_name(
    rows: pd.DataFrame,
    value: str,
    column: str,
    labels: Sequence[str],
    *,
    title: str,
    level: Mapping[str, float] | None = None,
    beside: str = "chance",
    axis: Mapping[str, Any] | None = None,
) -> Plot:
    """A group of dots per name in `column`, one dot per entry, with `lo hi` as its interval where `rows` have them.

    `level` is a reference value for each name, drawn as a bar across its group; the legend calls it `beside`.
    """
    names = [str(name) for name in dict.fromkeys(rows[column])]
    traces = []
    for i, label in enumerate(labels):
        points = rows[rows.entry == label]
        if len(points):
            look = {"color": COLOURS[i % len(COLOURS)], "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 9}
            trace = {"type": "scatter", "mode": "markers", "name": html.escape(label), "marker": look}
            shown = {"x": [html.escape(str(name)) for name in points[column]], "y": plains(points[value])}
            traces.append({**trace, **shown, **_ends(points, value), "hovertemplate": "%{x}: %{y:.4g}"})
    across = {"type": "category", "categoryorder": "array", "categoryarray": [html.escape(name) for name in names]}
    figure = layout(
        y=title, height=_height(traces), legend=True, xaxis=across, yaxis=axis, scattermode="group", scattergap=0.3
    )
    if level:
        bar = {"symbol": "line-ew-open", "size": 30, "line": {"width": 2}, "color": _GREY}
        dots = {"type": "scatter", "mode": "markers", "name": html.escape(beside), "marker": bar, "xaxis": "x2"}
        known = [name for name in names if name in level]
        values = {"x": [html.escape(name) for name in known], "y": plains([level[name] for name in known])}
        traces.append({**dots, **values, "hovertemplate": "%{x}: %{y:.4g}"})
        # A separate axis: on that of the dots the bar would be one more of the group, and stand beside them.
        figure["xaxis2"] = {**across, "overlaying": "x", "matches": "x", "visible": False}
    return {"data": traces, "layout": figure}


def by_depth(
    rows: pd.DataFrame,
    value: str,
    layers: Mapping[str, int],
    *,
    title: str,
    level: str = "",
    beside: str = "chance",
    axis: Mapping[str, Any] | None = None,
) -> Plot:
    """One line per entry, over its layers; over relative depth (first block 0, last 1) where `layers` differ.

    The column `level` is a reference value, which the legend calls `beside`: drawn as its mean over entries if their
    depths are equal, else once per entry.
    """
    relative = len(set(layers.values())) > 1
    depth = rows.layer.astype(float) / rows.entry.map(layers).sub(1).clip(lower=1) if relative else rows.layer
    rows = rows.assign(depth=depth)
    traces = []
    for i, label in enumerate(layers):
        curve = rows[rows.entry == label].groupby("depth", as_index=False)[value].mean()
        if len(curve):
            traces.append(
                _line(plains(curve.depth), plains(curve[value]), label, i) | {"hovertemplate": "%{x}: %{y:.4g}"}
            )
    if level:
        alike = [group for _, group in rows.groupby("entry", sort=False)] if relative else [rows]
        means = [mean for group in alike if len(mean := group.groupby("depth")[level].mean().dropna())]
        dotted = {
            "type": "scatter",
            "mode": "lines",
            "name": html.escape(beside),
            "legendgroup": "beside",
            "line": {"dash": "dot", "color": _GREY},
            "hovertemplate": "%{x}: %{y:.4g}",
        }
        traces += [
            {**dotted, "showlegend": i == 0, "x": plains(mean.index), "y": plains(mean)} for i, mean in enumerate(means)
        ]
    ticks = {"dtick": 1} if not relative and rows.depth.max() <= 16 else {}
    x = "relative depth, 0 the first block" if relative else "layer"
    return {
        "data": traces,
        "layout": layout(x=x, y=title, height=_height(traces), legend=True, xaxis=ticks, yaxis=axis),
    }


def over_order(
    rows: pd.DataFrame, column: str, labels: Sequence[str], *, axis: Mapping[str, Any] | None = None
) -> Plot:
    """`value` with `lo hi` over the entries in their order, one line per name in `column`."""
    traces = []
    for i, (name, course) in enumerate(rows.groupby(column, sort=False)):
        course = course.set_index("entry").reindex(labels)
        shown = _line([html.escape(label) for label in labels], plains(course.value), str(name), i)
        traces.append({**shown, **_ends(course, "value"), "hovertemplate": "%{x}: %{y:.4g}"})
    order = {"type": "category", "categoryorder": "array", "categoryarray": [html.escape(label) for label in labels]}
    return {"data": traces, "layout": layout(height=_height(traces), legend=len(traces) > 1, xaxis=order, yaxis=axis)}


def matrix(rows: pd.DataFrame, labels: Sequence[str]) -> Plot:
    """Rank correlations `rho` of the entries `a` and `b`, each with its interval on hover."""
    values, told = np.eye(len(labels)), np.full((len(labels), len(labels)), "", object)
    values[~np.eye(len(labels), dtype=bool)] = np.nan
    at = {label: i for i, label in enumerate(labels)}
    for row in rows.to_dict("records"):
        for i, j in ((at[row["a"]], at[row["b"]]), (at[row["b"]], at[row["a"]])):
            values[i, j] = row["rho"]
            told[i, j] = (
                f" [{row['lo']:.2f}, {row['hi']:.2f}]<br>by chance [{row['null_lo']:.2f}, {row['null_hi']:.2f}]"
            )
    return square(values, told, labels)


def _height(traces: Sequence[Plot]) -> int:
    """A height that leaves room for a legend of one line per trace."""
    return 320 + 18 * max(0, len(traces) - 4)


def nothing() -> Plot:
    """A placeholder for a figure of what an entry did not measure."""
    said = {"text": "not measured", "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper", "showarrow": False}
    hidden = {"visible": False}
    return {"data": [], "layout": layout(height=140, xaxis=hidden, yaxis=hidden, annotations=[said])}


def _line(x: Sequence[Any], y: Sequence[Any], name: str, i: int) -> Plot:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(x),
        "y": list(y),
        "name": html.escape(name),
        "line": {"color": COLOURS[i % len(COLOURS)], "dash": _DASHES[i // len(COLOURS) % len(_DASHES)]},
        "marker": {"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 7},
    }


def _ends(rows: pd.DataFrame, value: str) -> dict[str, Any]:
    """Error bars of every point, if there are intervals."""
    if "lo" not in rows or rows.lo.isna().all():
        return {}
    reach = {"array": plains(rows.hi - rows[value]), "arrayminus": plains(rows[value] - rows.lo)}
    return {"error_y": {"type": "data", "symmetric": False, "thickness": 1.2, **reach}}
