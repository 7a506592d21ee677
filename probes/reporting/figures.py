"""Layer × something heat maps: DataFrames in, Plotly figures out, as plain data. Scales serve colour-blind readers."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probes.reporting.words import layer_name, number

#: A Plotly figure as it is embedded: {"data": traces, "layout": …}.
Plot: TypeAlias = dict[str, Any]
#: Blue – white – orange, for signed values.
DIVERGING = [[0, "#1f5fa8"], [0.25, "#86b3dc"], [0.5, "#f4f4f1"], [0.75, "#f2b06b"], [1, "#b85a00"]]
SEQUENTIAL = "Cividis"
#: The column that holds embedding and unembedding, which belong to no block.
ENDS = "(un)embed"
#: Prompts that a cell leads to.
BEHIND = 5
#: Columns of a map up to which cells are wide enough for their numbers on half of a page; others have a star at most.
_WRITTEN = 20
_FAINT = "rgba(128,128,128,.3)"
#: What did not move, or was not measured: it has no place on a scale.
_GREY = "rgba(128,128,128,.45)"


def heatmap(
    frame: pd.DataFrame,
    value: str,
    column: str,
    order: Sequence[str],
    n_layers: int,
    *,
    centre: float | None = None,
    reach: float | None = None,
    hover: Sequence[str] = (),
    marked: str | None = None,
    ratio: bool = False,
    axis: str = "",
    behind: pd.DataFrame | None = None,
) -> Plot:
    """Layer × `column` map of `value`, one cell per row of `frame`, first layer at the bottom.

    The axis across is called `axis`, or as its column is. With a `centre` the scale diverges there and spans ± `reach`;
    without, it runs from 0 to `reach`. `hover` names more columns to show on a cell; `marked` is a column of booleans
    that put a star on a cell. A `ratio` is coloured by its logarithm, from 1/`reach` over 1 to `reach`. A cell whose
    value is null is grey. `behind` has `layer`, `column`, `prompt` (its row in the table of prompts) and `value` of
    each prompt: a cell leads to those that have most of it.
    """
    columns, rows = _columns(frame, column), frame.layer.astype(int).tolist()
    there = set(columns)
    names = [name for name in [*order, ENDS] if name in there]
    names += sorted(there - set(names))
    layers = sorted(set(rows))
    at = {place: i for i, place in enumerate(zip(rows, columns, strict=True))}
    values = frame[value].to_numpy(np.float64)
    coloured = np.log2(np.maximum(values, 2.0**-20)) if ratio else values
    scale = _ratio_scale(coloured, reach) if ratio else _scale(values, centre, reach)
    decimals = 1 if ratio else _decimals(scale["zmax"] - (centre or 0))
    extra = {name: frame[name].to_numpy(np.float64).tolist() for name in hover}
    starred = frame[marked].to_numpy(bool) if marked else np.zeros(len(rows), bool)
    z: list[list[float | None]] = []
    text: list[list[str]] = []
    told: list[list[str]] = []
    for layer in layers:
        places = [at.get((layer, name)) for name in names]
        z.append([None if i is None else plain(coloured[i]) for i in places])
        text.append([_cell(values, i, starred, decimals) for i in places])
        told.append(["" if i is None else _told(values[i], {name: extra[name][i] for name in hover}) for i in places])
    counted = f"{axis or column} " if all(name.isdigit() for name in names) else ""
    prompts = {} if behind is None or behind.empty else {"meta": {"behind": _behind(behind, column, layers, names)}}
    row = 26 if len(layers) <= 16 else 18 if len(layers) <= 40 else 12
    cells = {
        "type": "heatmap",
        "z": z,
        "x": [html.escape(name) for name in names],
        "y": [layer_name(layer, n_layers) for layer in layers],
        "text": text if len(names) <= _WRITTEN else [["∗" * cell.endswith("∗") for cell in line] for line in text],
        "texttemplate": "%{text}",
        "textfont": {"size": 10 if len(layers) <= 20 else 8},
        "customdata": told,
        "hovertemplate": f"layer %{{y}}, {counted}%{{x}}: %{{customdata}}<extra></extra>",
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        **scale,
        **prompts,
    }
    return {
        "data": [cells],
        "layout": layout(
            x=axis or column,
            y="layer",
            height=84 + row * max(len(layers), 3),
            xaxis={"type": "category", "showgrid": False},
            yaxis={"type": "category", "showgrid": False, "dtick": 1 if len(layers) <= 40 else 4},
            shapes=_grey(z, text),
        ),
    }


def _behind(rows: pd.DataFrame, column: str, layers: Sequence[int], names: Sequence[str]) -> list[list[list[Any]]]:
    """Of every cell the prompts with the largest sizes, each followed by its value."""
    named = rows.assign(name=_columns(rows, column)).dropna(subset="value")
    largest = named.loc[named.value.abs().sort_values(ascending=False, kind="stable").index]
    cells: dict[tuple[int, str], list[Any]] = {}
    for layer, name, prompt, value in zip(
        *(largest[part].tolist() for part in ("layer", "name", "prompt", "value")), strict=True
    ):
        of = cells.setdefault((layer, name), [])
        if len(of) < 2 * BEHIND:
            of += [prompt, plain(value)]
    return [[cells.get((layer, name), []) for name in names] for layer in layers]


def _grey(z: list[list[float | None]], text: list[list[str]]) -> list[Plot]:
    """Rectangles behind the cells that exist and have no value: one for each run of them in a column."""
    look = {"type": "rect", "layer": "below", "fillcolor": _GREY, "line": {"width": 0}}
    shapes = []
    for x, column in enumerate(zip(*z, strict=True)):
        unknown = [value is None and bool(line[x]) for value, line in zip(column, text, strict=True)]
        for is_unknown, cells in groupby(range(len(unknown)), key=unknown.__getitem__):
            rows = list(cells)
            if is_unknown:
                shapes.append(look | {"x0": x - 0.5, "x1": x + 0.5, "y0": rows[0] - 0.5, "y1": rows[-1] + 0.5})
    return shapes


def layout(
    *,
    x: str = "",
    y: str = "",
    height: int,
    legend: bool = False,
    xaxis: Mapping[str, Any] | None = None,
    yaxis: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The look that all figures share: transparent, so that the page's colours show in light and dark."""
    axis = {"gridcolor": _FAINT, "linecolor": _FAINT, "zeroline": False, "automargin": True, "fixedrange": True}
    return {
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "dragmode": False,
        "xaxis": {**axis, "title": {"text": x, "standoff": 6}, **(xaxis or {})},
        "yaxis": {**axis, "title": {"text": y, "standoff": 4}, **(yaxis or {})},
        **more,
    }


def plain(value: float) -> float | None:
    """Five significant digits, None for NaN: valid and short JSON."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def plains(values: Any) -> list[float | None]:
    """`plain` of every value."""
    return [plain(value) for value in np.asarray(values, np.float64)]


def _columns(frame: pd.DataFrame, column: str) -> list[str]:
    return [ENDS if name in ("embed", "unembed") else str(name) for name in frame[column]]


def _cell(values: np.ndarray, i: int | None, starred: np.ndarray, decimals: int) -> str:
    if i is None:
        return ""
    decimals = decimals if abs(values[i]) < 100 else 0
    shown = "–" if np.isnan(values[i]) else f"{round(float(values[i]), decimals) + 0.0:.{decimals}f}".replace("-", "−")
    return shown + ("∗" if starred[i] else "")


def _decimals(reach: float) -> int:
    """The decimals that a cell needs where values go up to `reach`."""
    return min(4, max(0, 1 - math.floor(math.log10(reach / 2))))


def _told(value: float, extra: Mapping[str, float]) -> str:
    return number(value) + "".join(f"<br>{name} {number(more)}" for name, more in extra.items())


_BAR = {"thickness": 8, "outlinewidth": 0, "tickfont": {"size": 10}, "xpad": 4}


def _scale(values: np.ndarray, centre: float | None, reach: float | None) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    if centre is None:
        top = reach or float(known.max(initial=0)) or 1.0
        return {"colorscale": SEQUENTIAL, "zmin": 0, "zmax": top, "colorbar": _BAR}
    far = reach or float(np.abs(known - centre).max(initial=0)) or 1.0
    return {"colorscale": DIVERGING, "zmin": centre - far, "zmax": centre + far, "colorbar": _BAR}


def _ratio_scale(logarithms: np.ndarray, reach: float | None) -> dict[str, Any]:
    known = np.abs(logarithms[np.isfinite(logarithms)])
    far = math.log2(reach) if reach else max(float(known.max(initial=0)), 0.25)
    step = 2 if far > 3 else 1 if far >= 1 else 0.25
    ticks = [float(tick) for tick in np.arange(-step * (far // step), far + 1e-9, step)]
    bar = {**_BAR, "tickvals": ticks, "ticktext": [f"{2**tick:.2g}×" for tick in ticks]}
    return {"colorscale": DIVERGING, "zmin": -far, "zmax": far, "colorbar": bar}


def reach(ratios: pd.Series) -> float:
    """The ratio at which colours end: the largest one, within 1.2 and 4, so that outliers do not drown the rest."""
    sizes = np.exp2(np.abs(np.log2(ratios[ratios > 0].astype(float))))
    return float(np.clip(sizes.max(), 1.2, 4.0)) if len(sizes) else 1.2


def square(values: NDArray[np.float64], told: NDArray[np.object_], names: Sequence[str]) -> Plot:
    """Values in [−1, 1] of every two names, (n, n), NaN where there is none; hovering adds `told`."""
    shown = [html.escape(name) for name in names]
    cells = {
        "type": "heatmap",
        "z": [[plain(value) for value in line] for line in values],
        "x": shown,
        "y": shown,
        "text": [["–" if np.isnan(v) else f"{v:.2f}".replace("-", "−") for v in line] for line in values],
        "texttemplate": "%{text}",
        "customdata": told.tolist(),
        "hovertemplate": "%{y}, %{x}: %{z:.3f}%{customdata}<extra></extra>",
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        "colorscale": DIVERGING,
        "zmin": -1,
        "zmax": 1,
        "colorbar": {"thickness": 8, "outlinewidth": 0},
    }
    axis = {"type": "category", "showgrid": False}
    height = 100 + 44 * max(len(names), 3)
    return {"data": [cells], "layout": layout(height=height, xaxis=axis, yaxis={**axis, "autorange": "reversed"})}


def token_map(pattern: pd.DataFrame, value: str, centre: float | None, reach: float) -> Plot:
    """Query × key map of a pattern (rows of `attention_patterns`), the first query on top; what is not seen is empty.

    With a `centre` the scale diverges there and spans ± `reach`; without, it runs from 0 to `reach`.
    """
    queries = dict(zip(pattern.query_pos.astype(int), pattern["query"], strict=True))
    keys = dict(zip(pattern.key_pos.astype(int), pattern["key"], strict=True))
    rows, columns = sorted(queries), sorted(keys)
    cells = pattern.pivot(index="query_pos", columns="key_pos", values=value).reindex(index=rows, columns=columns)
    axis = {"type": "category", "showgrid": False, "tickfont": {"size": 9}}
    shown = {
        "type": "heatmap",
        "z": [
            [None if np.isnan(cell) else round(float(cell), 3) for cell in row] for row in cells.to_numpy(np.float64)
        ],
        "x": [_token(pos, keys[pos]) for pos in columns],
        "y": [_token(pos, queries[pos]) for pos in rows],
        "hovertemplate": "%{y} to %{x}: %{z:.3f}<extra></extra>",
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        **_scale(cells.to_numpy(np.float64), centre, reach),
    }
    across = {**axis, "dtick": 1, "tickangle": -90}
    up = {**axis, "dtick": 1, "autorange": "reversed"}
    return {
        "data": [shown],
        "layout": layout(x="key", y="query", height=150 + 13 * max(len(rows), 12), xaxis=across, yaxis=up),
    }


def _token(pos: int, token: str) -> str:
    """A token beside its place, so that two of one text are two; the sink is none."""
    return "nothing (sink)" if pos < 0 else f"{pos} {html.escape(token.strip() or repr(token)[1:-1])}"
