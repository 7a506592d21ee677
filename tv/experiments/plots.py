"""Figures of the experiments: curves with their intervals, and matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

_COLOURS = qualitative.Safe
_HEIGHT = 280


def curves(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    lo: str | None,
    hi: str | None,
    line: str,
    panel: str,
    x_title: str,
    y_title: str,
    level: str | None = None,
    columns: int = 3,
) -> go.Figure:
    """A panel per value of `panel`, a line per value of `line` with its interval as a band; `level` is drawn dashed."""
    panels = list(dict.fromkeys(frame[panel]))
    lines = list(dict.fromkeys(frame[line]))
    columns = max(1, min(columns, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = make_subplots(rows, columns, subplot_titles=[str(name) for name in panels], shared_xaxes=True)
    for i, name in enumerate(panels):
        at = {"row": i // columns + 1, "col": i % columns + 1}
        for j, label in enumerate(lines):
            series = frame[(frame[panel] == name) & (frame[line] == label)].sort_values(x)
            colour = _COLOURS[j % len(_COLOURS)]
            if lo and hi and len(series):
                figure.add_trace(_band(series, x, lo, hi, colour, str(label)), **at)
            drawn = go.Scatter(
                x=series[x],
                y=series[y],
                name=str(label),
                legendgroup=str(label),
                showlegend=i == 0,
                line={"color": colour},
            )
            figure.add_trace(drawn, **at)
            if level and len(series):
                dashed = {"color": colour, "dash": "dash", "width": 1}
                hidden = {"legendgroup": str(label), "showlegend": False}
                figure.add_trace(
                    go.Scatter(x=series[x], y=series[level], name=f"{label}: {level}", line=dashed, **hidden), **at
                )
    figure.update_xaxes(title_text=x_title, row=rows)
    figure.update_yaxes(title_text=y_title, col=1)
    return figure.update_layout(height=80 + _HEIGHT * rows, template="plotly_white", margin={"t": 50})


def primary_rows(frame: pd.DataFrame, primary: Mapping[str, str]) -> pd.DataFrame:
    """The rows of each task's primary metric, under any answer filter; `primary` maps task → metric."""
    pairs = zip(frame.task, frame.metric, strict=True)
    chosen = frame[[metric.split(",")[0] == primary.get(task) for task, metric in pairs]]
    return chosen if len(chosen) else frame


def matrix(frame: pd.DataFrame, *, row: str, column: str, value: str, title: str) -> go.Figure:
    """A matrix with its numbers in it."""
    table = frame.pivot_table(index=row, columns=column, values=value, sort=False)
    drawn = go.Heatmap(
        z=table.to_numpy(),
        x=[str(name) for name in table.columns],
        y=[str(name) for name in table.index],
        texttemplate="%{z:.2f}",
        colorscale="Blues",
        colorbar={"title": title},
    )
    height = 160 + 32 * len(table)
    return go.Figure(drawn).update_layout(height=height, template="plotly_white", yaxis={"autorange": "reversed"})


def bars(frame: pd.DataFrame, *, x: Sequence[str], y: str, lo: str, hi: str, group: str, y_title: str) -> go.Figure:
    """A bar per row under the labels of `x`, coloured by `group`, with its interval."""
    figure = go.Figure()
    for j, label in enumerate(dict.fromkeys(frame[group])):
        series = frame[frame[group] == label]
        error = {"type": "data", "array": series[hi] - series[y], "arrayminus": series[y] - series[lo]}
        names = [" · ".join(str(part) for part in parts) for parts in series[list(x)].itertuples(index=False)]
        figure.add_trace(
            go.Bar(x=names, y=series[y], error_y=error, name=str(label), marker_color=_COLOURS[j % len(_COLOURS)])
        )
    return figure.update_layout(height=420, template="plotly_white", yaxis_title=y_title, barmode="group")


def _band(series: pd.DataFrame, x: str, lo: str, hi: str, colour: str, group: str) -> go.Scatter:
    inner = colour.removeprefix("rgb(").removesuffix(")")
    return go.Scatter(
        x=[*series[x], *series[x][::-1]],
        y=[*series[hi], *series[lo][::-1]],
        fill="toself",
        fillcolor=f"rgba({inner}, 0.15)",
        line={"width": 0},
        hoverinfo="skip",
        legendgroup=group,
        showlegend=False,
    )
