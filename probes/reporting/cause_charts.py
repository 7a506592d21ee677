"""The figures of the causes: waterfall, curves of growing sets, effects beside their controls, depth."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd

from probes.attribution.effects import units_in
from probes.methods import linked_methods, words_of
from probes.reporting.charts import COLOURS
from probes.reporting.figures import Plot, layout, plain, plains

#: The rankings of a curve that are no attribution methods, in words.
_SCORES = {"norm": "‖T‖", "ssa": "SSA", "kappa": "κ", "ledger": "ledger, direct term", "gate_flips": "gate flips"}
#: Components that a waterfall shows one by one; the rest is one bar.
STEPS = 24
_GREY = "#888888"
_BAND = "rgba(128,128,128,.28)"


def waterfall(effects: pd.DataFrame, start: float, end: float, metric: str) -> Plot:
    """From the base's metric to the tuned one's, one bar per unit in the order in which the network computes."""
    effects = effects.sort_values(["layer", "component"], kind="stable")  # a block's attention comes before its MLP
    largest = set(effects.effect.abs().nlargest(STEPS).index)
    shown = effects[effects.index.isin(largest)]
    rest = float(effects.effect[~effects.index.isin(largest)].sum())
    steps = list(zip(map(str, units_in(shown)), shown.effect.astype(float), strict=True))
    if len(shown) < len(effects):
        steps.append((f"{len(effects) - len(shown)} others", rest))
    steps.append(("not covered", end - start - sum(value for _, value in steps)))
    bars = {
        "type": "waterfall",
        "measure": ["absolute", *["relative"] * len(steps), "total"],
        "x": ["base", *(html.escape(name) for name, _ in steps), "tuned"],
        "y": [plain(start), *(plain(value) for _, value in steps), plain(end)],
        "increasing": {"marker": {"color": COLOURS[1]}},
        "decreasing": {"marker": {"color": COLOURS[0]}},
        "totals": {"marker": {"color": _GREY}},
        "connector": {"line": {"width": 1, "color": _GREY}},
        "hovertemplate": "%{x}: %{delta:+.4g}<br>so far %{y:.4g}<extra></extra>",
    }
    axis = {"type": "category", "tickangle": -45, "showgrid": False}
    return {"data": [bars], "layout": layout(y=metric, height=380, xaxis=axis)}


def growing(curves: pd.DataFrame, metric: str, title: str) -> Plot:
    """The metric when each ranking's top n are moved together, and the span of random orders as a band."""
    drawn = curves[curves.ranking == "random"].groupby("n").value.agg(["min", "max"])
    n = [int(value) for value in drawn.index]
    traces = [
        {
            "type": "scatter",
            "x": n + n[::-1],
            "y": plains(drawn["max"]) + plains(drawn["min"])[::-1],
            "fill": "toself",
            "fillcolor": _BAND,
            "line": {"width": 0},
            "name": f"{curves[curves.ranking == 'random'].draw.nunique()} random orders",
            "hoverinfo": "skip",
        }
    ] * bool(len(n))
    for i, (name, label) in enumerate(_rankings().items()):
        curve = curves[curves.ranking == name].sort_values("n")
        if len(curve):
            line = {"color": COLOURS[i % len(COLOURS)], "dash": "solid" if i < 4 else "dot", "width": 2}
            marker = {"symbol": i, "size": 6}
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": curve.n.astype(int).tolist(),
                    "y": plains(curve.value),
                    "name": label,
                    "line": line,
                    "marker": marker,
                    "hovertemplate": "%{x}: %{y:.4g}",
                }
            )
    return {"data": traces, "layout": layout(x=title, y=metric, height=400, legend=True)}


def areas(rows: pd.DataFrame) -> Plot:
    """The area of every ranking's curve with its interval, one dot per direction; random orders as mean and span."""
    traces, rankings = [], _rankings()
    for i, (direction, family) in enumerate(rows.groupby("direction", sort=False)):
        random = family[family.ranking == "random"].area.to_numpy(float)
        named = family[family.ranking.isin(list(rankings))].sort_values("area")
        names, values = [rankings[name] for name in named.ranking], plains(named.area)
        if len(random):
            names, values = ["random orders (mean, span)", *names], [plain(random.mean()), *values]
        reach = [random.max() - random.mean(), random.mean() - random.min()] if len(random) else [0.0, 0.0]
        above = [value or 0.0 for value in plains(named.hi.astype(float) - named.area)]
        below = [value or 0.0 for value in plains(named.area - named.lo.astype(float))]
        colour = COLOURS[i]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": values,
                "y": names,
                "name": f"{'graft' if str(direction).startswith('base') else 'revert'} curve",
                "marker": {"size": 10, "color": colour, "symbol": i},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [plain(reach[0]), *above] if len(random) else above,
                    "arrayminus": [plain(reach[1]), *below] if len(random) else below,
                    "color": colour,
                },
                "hovertemplate": "%{y}: %{x:.3f}",
            }
        )
    height = 110 + 26 * rows.ranking.nunique()
    return {"data": traces, "layout": layout(x="area", height=height, legend=True, yaxis={"type": "category"})}


def beside_control(effects: pd.DataFrame, controls: pd.DataFrame, most: int = 20) -> Plot:
    """The largest effects of T, and those of the same units of control vectors."""
    ranked = effects.loc[effects.effect.abs().nlargest(most).index][::-1]
    names = [str(unit) for unit in units_in(ranked)]
    traces = [_dots(names, ranked, "tuning vector", COLOURS[1], "circle")]
    for i, (kind, control) in enumerate(controls.groupby("control", sort=False)):
        at = {str(unit): place for place, unit in enumerate(units_in(control))}
        matched = control.iloc[[at[name] for name in names if name in at]]
        label = f"{kind} vector of T's norms"
        traces.append(_dots([name for name in names if name in at], matched, label, COLOURS[2 + i], "x"))
    axis = {"type": "category"}
    return {"data": traces, "layout": layout(x="effect", height=110 + 21 * len(names), legend=True, yaxis=axis)}


def among_draws(real: pd.DataFrame, draws: pd.DataFrame, domains: Sequence[str]) -> Plot:
    """The effect of the whole T among those of draws of control vectors, a line per domain."""
    order = {domain: i for i, domain in enumerate(reversed(domains))}
    families = [(f"{kind} vectors of its norms", rows) for kind, rows in draws.groupby("control", sort=False)]
    traces = []
    for i, (label, rows) in enumerate([*families, ("tuning vector", real)]):
        rows = rows[rows.domain.isin(domains)].sort_values("domain", key=lambda column: column.map(order))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": plains(rows.effect),
                "y": [html.escape(domain) for domain in rows.domain],
                "name": label,
                "marker": {
                    "size": 9,
                    "color": COLOURS[(i + 1) % len(COLOURS)],
                    "symbol": "x" if i < len(families) else "circle",
                },
                "hovertemplate": "%{y}: %{x:.4g}",
            }
        )
    axis = {"type": "category"}
    return {"data": traces, "layout": layout(x="effect", height=110 + 30 * len(domains), legend=True, yaxis=axis)}


def by_cut(depth: pd.DataFrame, metric: str) -> Plot:
    """The metric of two models joined at each depth, between the metrics of the whole models."""
    traces = []
    for i, ((upstream, late), curve) in enumerate(depth.groupby(["upstream", "late"], sort=False)):
        curve, whole = curve.sort_values("cut"), upstream == late
        line = {"color": _GREY if whole else COLOURS[i % len(COLOURS)], "dash": "dash" if whole else "solid"}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if whole else "lines+markers",
                "x": curve.cut.astype(int).tolist(),
                "y": plains(curve.value),
                "name": f"{upstream}" if whole else f"{upstream} below, {late} above",
                "line": line,
                "hovertemplate": "%{x}: %{y:.4g}",
            }
        )
    return {"data": traces, "layout": layout(x="cut: layers below it", y=metric, height=340, legend=True)}


def _dots(names: list[str], rows: pd.DataFrame, label: str, colour: str, symbol: str) -> Plot:
    values = rows.effect.to_numpy(np.float64)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": plains(values),
        "y": [html.escape(name) for name in names],
        "name": label,
        "marker": {"size": 9, "color": colour, "symbol": symbol},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": plains(rows.hi.to_numpy(np.float64) - values),
            "arrayminus": plains(values - rows.lo.to_numpy(np.float64)),
            "thickness": 1.2,
            "color": colour,
        },
        "hovertemplate": "%{y}: %{x:.4g}",
    }


def _rankings() -> dict[str, str]:
    """The rankings of a curve, in words: methods that the link knows, their mean, and scores."""
    return {name: words_of(name) for name in (*linked_methods(), "mean")} | _SCORES
