"""The figures of steering: shares by layer and by dose, and the chosen vector among its placebos."""

from __future__ import annotations

from typing import Any

import pandas as pd

from probes.attribution.effects import FORWARD
from probes.reporting.charts import COLOURS
from probes.reporting.figures import Plot, layout, plain, plains

_NAMES = {FORWARD: "added to the base", "tuned→base": "taken from the tuned model"}
#: The model that is steered; whole sentences would leave no room for the dots.
_STEERED = {FORWARD: "base", "tuned→base": "tuned"}


def by_layer(rows: pd.DataFrame) -> Plot:
    """The held-out share at every layer, both ways."""
    return _lines(rows, "layer", "layer")


def by_dose(rows: pd.DataFrame) -> Plot:
    """The held-out share at every dose, at the layer that the other half chose, both ways."""
    return _lines(rows, "dose", "dose, multiples of the vector")


def _lines(rows: pd.DataFrame, column: str, title: str) -> Plot:
    traces = []
    for i, (direction, own) in enumerate(rows.sort_values(column).groupby("direction", sort=True)):
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": plains(own[column]),
                "y": plains(own.share),
                "name": _NAMES.get(str(direction), str(direction)),
                "line": {"color": COLOURS[i], "width": 2},
                "marker": {"symbol": i, "size": 7},
                "error_y": _ends(own, "share"),
                "hovertemplate": "%{x}: %{y:.3g}",
            }
        )
    return {"data": traces, "layout": layout(x=title, y="share of the change", height=320, legend=True)}


def among_placebos(rows: pd.DataFrame) -> Plot:
    """Every placebo's effect as a dot, and the chosen vector's with its interval, both ways."""
    traces: list[dict[str, Any]] = []
    for i, (direction, own) in enumerate(rows.groupby("direction", sort=True)):
        name = _STEERED.get(str(direction), str(direction))
        for kind, drawn in own[own.control != ""].groupby("control", sort=True):
            dots = {"size": 6, "color": COLOURS[i], "symbol": "circle-open"}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": plains(drawn.effect),
                    "y": [f"{kind}, {name}"] * len(drawn),
                    "marker": dots,
                    "hovertemplate": "%{x:.4g}<extra></extra>",
                }
            )
        real = own[own.control == ""]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": plains(real.effect),
                "y": [f"the vector, {name}"] * len(real),
                "marker": {"size": 11, "color": COLOURS[i], "symbol": "diamond"},
                "error_x": _ends(real, "effect"),
                "hovertemplate": "%{x:.4g}<extra></extra>",
            }
        )
    axis = {"type": "category", "showgrid": False}
    return {"data": traces, "layout": layout(x="effect, towards the other model", height=280, yaxis=axis)}


def _ends(rows: pd.DataFrame, of: str) -> dict[str, Any]:
    lo, hi = ("lo", "hi") if of == "effect" else (f"{of}_lo", f"{of}_hi")
    above, below = (rows[hi] - rows[of]).astype(float), (rows[of] - rows[lo]).astype(float)
    return {
        "type": "data",
        "symmetric": False,
        "array": [plain(value) or 0.0 for value in above],
        "arrayminus": [plain(value) or 0.0 for value in below],
        "thickness": 1,
    }
