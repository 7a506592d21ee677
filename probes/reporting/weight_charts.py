"""The figures of weights other than layer × module maps: spectra of a matrix, and cosines between vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probes.reporting.charts import COLOURS
from probes.reporting.figures import Plot, layout, plains, square

_LOG = {"type": "log", "showgrid": True, "dtick": 1}


def singular_values(rows: pd.DataFrame) -> Plot:
    """σ of W and of T by rank, both axes logarithmic; `rows` are those of one matrix in the table `spectra`."""
    traces = []
    for i, (column, name) in enumerate({"sigma": "W, pretrained", "sigma_delta": "T, the change"}.items()):
        positive = rows[rows[column] > 0]
        traces.append(_line(positive, positive[column], name, COLOURS[i]) | {"hovertemplate": "%{x}: %{y:.3g}"})
    return {"data": traces, "layout": layout(x="rank", y="singular value", height=340, legend=True, **_axes("log"))}


def gathered(rows: pd.DataFrame) -> Plot:
    """The share of T's energy in W's leading directions, on both sides, beside the nulls."""
    traces = []
    for i, (side, name) in enumerate((("left", "output side"), ("right", "input side"))):
        shown = {"hovertemplate": "%{x}: %{y:.1%}"}
        traces.append(_line(rows, rows[f"share_{side}"], name, COLOURS[i]) | shown)
        null = _line(rows, rows[f"share_null_{side}"], f"no direction, {name}", COLOURS[i])
        traces.append(null | shown | {"line": {"dash": "dot", "color": COLOURS[i]}})
    axes = _axes("linear", tickformat=".0%", range=[0, 1])
    return {
        "data": traces,
        "layout": layout(x="leading directions of W", y="share of ‖T‖²", height=340, legend=True, **axes),
    }


def cosine_matrix(rows: pd.DataFrame, names: Sequence[str]) -> Plot:
    """Cosines of every two tuning vectors as a symmetric matrix; hovering shows z for random signs."""
    values, far = np.eye(len(names)), np.full((len(names), len(names)), np.nan)
    at = {name: i for i, name in enumerate(names)}
    for row in rows.to_dict("records"):
        for i, j in ((at[row["tuned"]], at[row["reference"]]), (at[row["reference"]], at[row["tuned"]])):
            values[i, j], far[i, j] = row["cosine"], row["cosine_z"]
    told = [
        ["" if np.isnan(z) else f"<br>{z:+.0f} standard deviations of entries with random signs" for z in line]
        for line in far
    ]
    return square(values, np.array(told, object), names)


def _line(rows: pd.DataFrame, values: pd.Series, name: str, colour: str) -> Plot:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rows["rank"].astype(int).tolist(),
        "y": plains(values),
        "name": name,
        "line": {"color": colour},
    }


def _axes(y: str, **more: object) -> Plot:
    return {"xaxis": _LOG, "yaxis": {**(_LOG if y == "log" else {}), **more}}
