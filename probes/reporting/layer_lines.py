"""Lines over layers with intervals, and their nulls beside them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from probes.reporting.charts import COLOURS
from probes.reporting.figures import Plot, layout, plains


@dataclass(frozen=True)
class Line:
    """One line over layers. A null is grey and dashed, and has no interval."""

    name: str
    rows: pd.DataFrame  # sorted by `x`
    y: str  # a column
    ends: tuple[str, str] | None = None  # of its interval
    null: bool = False


def over_layers(
    lines: Sequence[Line],
    y: str,
    *,
    x: str = "layer",
    x_title: str = "layer",
    log: bool = False,
    share: bool = False,
    zero: bool = False,
) -> Plot:
    """Lines over the layers of a model, or over another column: `log` for ranks. A `share` is shown in per cent."""
    traces = []
    dashes = ("dash", "dot", "dashdot", "longdash")
    nulls = 0
    for i, line in enumerate(lines):
        form = ".1%" if share else ".3g"
        trace = {
            "type": "scatter",
            "x": line.rows[x].astype(float).tolist(),
            "y": plains(line.rows[line.y]),
            "name": html.escape(line.name),
            "hovertemplate": f"{x_title} %{{x}}: %{{y:{form}}}",
        }
        if line.null:
            traces.append(trace | {"mode": "lines", "line": {"dash": dashes[nulls % 4], "color": "#888"}})
            nulls += 1
            continue
        look = {"mode": "lines+markers", "marker": {"size": 7, "symbol": i % 7}}
        trace |= look | {"line": {"color": COLOURS[i % len(COLOURS)]}}
        if line.ends is not None:
            value = line.rows[line.y].astype(float)
            lo, hi = (line.rows[end].astype(float) for end in line.ends)
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": plains(hi - value),
                "arrayminus": plains(value - lo),
                "thickness": 1.2,
            }
        traces.append(trace)
    axis = {"tickformat": ".0%"} if share else {}
    ticks = {"type": "log", "dtick": 0.30103} if log else {"dtick": 1} if _few(lines, x) else {}
    line_0 = {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "xref": "paper",
        "y0": 0,
        "y1": 0,
        "line": {"width": 1, "color": "#888"},
    }
    return {
        "data": traces,
        "layout": layout(
            x=x_title, y=y, height=340, legend=True, xaxis=ticks, yaxis=axis, shapes=[line_0] if zero else []
        ),
    }


def _few(lines: Sequence[Line], x: str) -> bool:
    return max((len(line.rows[x].unique()) for line in lines), default=0) <= 16
