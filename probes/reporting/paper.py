"""The report's figures drawn by matplotlib, for papers; only what the report's plots use is supported."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from probes.reporting.figures import Plot

_INCH = 96  # pixels of the page
_WIDTH = 6.5
_MARKERS = ("o", "s", "D", "P", "X", "^", "*", "v", "<")
_NAMED = {"circle": "o", "circle-open": "o", "x": "X", "line-ew-open": "_"}
_DASHES = {"solid": "-", "dot": ":", "dash": "--"}


def draw(plot: Plot, title: str, path: Path, form: str) -> None:
    """Draw `plot`, a figure of `probes.report`, to `path` in the format `form` (pdf, svg or png)."""
    figure = Figure(figsize=(_WIDTH, max(2.6, (plot["layout"]["height"] + 40) / _INCH)), layout="constrained")
    axes = figure.add_subplot()
    stacked: dict[Any, Any] = {}
    for trace in plot["data"]:
        kind = trace["type"]
        if kind == "heatmap":
            _heatmap(figure, axes, trace)
        elif kind == "waterfall":
            _waterfall(axes, trace)
        elif kind == "bar":
            _bars(axes, trace, stacked, plot["layout"].get("barmode") == "relative")
        else:
            _scatter(axes, trace)
    _frame(axes, plot["layout"], title)
    # Text stays text, and no file holds a date or an author.
    with matplotlib.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "probes"}):
        metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form)
        figure.savefig(path, format=form, dpi=200, metadata=metadata)


def _heatmap(figure: Figure, axes: Axes, trace: Plot) -> None:
    values = np.array([[np.nan if z is None else z for z in row] for row in trace["z"]], dtype=float)
    scale = trace["colorscale"]
    colours = scale.lower() if isinstance(scale, str) else LinearSegmentedColormap.from_list("page", scale)
    mesh = axes.imshow(values, cmap=colours, vmin=trace["zmin"], vmax=trace["zmax"], aspect="auto", origin="lower")
    axes.set_xticks(range(len(trace["x"])), [html.unescape(name) for name in trace["x"]])
    axes.set_yticks(range(len(trace["y"])), [html.unescape(name) for name in trace["y"]])
    for i, row in enumerate(trace["text"]):
        for j, text in enumerate(row):
            red, green, blue, _ = mesh.cmap(mesh.norm(values[i, j])) if np.isfinite(values[i, j]) else (1, 1, 1, 1)
            ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
            axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=7)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05)
    if "ticktext" in trace["colorbar"]:
        bar.set_ticks(trace["colorbar"]["tickvals"], labels=trace["colorbar"]["ticktext"])


def _scatter(axes: Axes, trace: Plot) -> None:
    line, marker = trace.get("line", {}), trace.get("marker", {})
    x, y = (_numbers(trace[name]) for name in ("x", "y"))
    if trace.get("fill") == "toself":
        colour = "#808080" if str(trace.get("fillcolor", "")).startswith("rgba") else trace.get("fillcolor", "#808080")
        axes.fill(x, y, alpha=0.25, linewidth=0, color=colour, label=_label(trace))
        return
    mode = trace.get("mode", "lines")
    symbol = marker.get("symbol", 0)
    symbols = symbol if isinstance(symbol, list) else [symbol] * len(x)
    colour = marker.get("color") or line.get("color")
    if "lines" in mode:
        style = _DASHES[line.get("dash", "solid")]
        shape = _shape(symbols[0]) if "markers" in mode and symbols else None
        axes.plot(x, y, style, marker=shape, markersize=4, color=colour, label=_label(trace))
        return
    for axis, values in ((axes.xaxis, x), (axes.yaxis, y)):
        if values and isinstance(values[0], str):
            axis.update_units(values)  # names keep their order, whichever dots are drawn first
    open_ones = np.array([str(name).endswith("-open") for name in symbols], dtype=bool)
    for chosen, face in ((~open_ones, colour), (open_ones, "none")):
        if chosen.any():
            dots = [[value for value, is_chosen in zip(values, chosen, strict=True) if is_chosen] for values in (x, y)]
            shape = _shape(symbols[int(chosen.argmax())])
            kwargs = {"marker": shape, "facecolor": face, "edgecolor": colour, "s": 28, "zorder": 3}
            axes.scatter(*dots, **kwargs, label=_label(trace) if face != "none" or not (~open_ones).any() else None)
    if error := trace.get("error_x"):
        spans = [[value or 0.0 for value in error[name]] for name in ("arrayminus", "array")]
        axes.errorbar(x, y, xerr=np.abs(spans), fmt="none", ecolor=colour, elinewidth=1)


def _bars(axes: Axes, trace: Plot, stacked: dict[Any, Any], stack: bool) -> None:
    names = trace["x"]
    if names and isinstance(names[0], list):  # two levels of categories
        names = [f"{outer} {inner}" for outer, inner in zip(*names, strict=True)]
    heights, at = np.array(_numbers(trace["y"]), dtype=float), np.arange(len(names))
    label, colour = _label(trace), trace["marker"].get("color")
    if stack:
        heights = np.nan_to_num(heights)
        ends = stacked.setdefault("ends", np.zeros((2, len(names))))  # of what is below 0, and above
        side = (heights >= 0).astype(int)
        axes.bar(at, heights, bottom=ends[side, at], label=label, color=colour)
        ends[side, at] += heights
    else:
        n = stacked.setdefault("n", 0)
        axes.bar(at + 0.4 * n - 0.2, heights, 0.38, label=label, color=colour)
        stacked["n"] = n + 1
    axes.set_xticks(at, names, rotation=90 if len(names) > 8 else 0, fontsize=7 if len(names) > 8 else None)


def _waterfall(axes: Axes, trace: Plot) -> None:
    level = 0.0
    for i, (kind, value) in enumerate(zip(trace["measure"], _numbers(trace["y"]), strict=True)):
        if kind == "relative":
            colour = trace["increasing" if value >= 0 else "decreasing"]["marker"]["color"]
            axes.bar(i, value, bottom=level, color=colour)
            level += value
        else:
            axes.bar(i, value, color=trace["totals"]["marker"]["color"])
            level = value
    axes.set_xticks(range(len(trace["x"])), [html.unescape(name) for name in trace["x"]], rotation=90, fontsize=7)


def _frame(axes: Axes, layout: Plot, title: str) -> None:
    axes.set_title(title, fontsize=10)
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        asked = layout[f"{name}axis"]
        axis.set_label_text(html.unescape(asked["title"]["text"]))
        if asked.get("type") == "log":
            axes.set(**{f"{name}scale": "log"})
        elif "range" in asked:
            axes.set(**{f"{name}lim": asked["range"]})
        if str(asked.get("tickformat", "")).endswith("%"):
            axis.set_major_formatter(PercentFormatter(1.0))
    for shape in layout.get("shapes", ()):
        if shape["type"] == "rect":  # behind cells without a value
            size = shape["x1"] - shape["x0"], shape["y1"] - shape["y0"]
            axes.add_patch(Rectangle((shape["x0"], shape["y0"]), *size, facecolor="#cccccc", linewidth=0, zorder=0))
            continue
        axes.axvline(shape["x0"], color="#888888", linewidth=1, linestyle=_DASHES[shape["line"].get("dash", "solid")])
    if layout["showlegend"] and axes.get_legend_handles_labels()[0]:
        beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if layout.get("barmode") == "relative" else {}
        axes.legend(fontsize=7, frameon=False, **beside)


def _numbers(values: Any) -> list[Any]:
    """None as NaN; text without HTML escapes."""
    return [np.nan if value is None else html.unescape(value) if isinstance(value, str) else value for value in values]


def _shape(symbol: Any) -> str:
    return _NAMED.get(symbol, "o") if isinstance(symbol, str) else _MARKERS[int(symbol) % len(_MARKERS)]


def _label(trace: Plot) -> str | None:
    return html.unescape(trace["name"]) if trace.get("showlegend", True) and trace.get("name") else None
