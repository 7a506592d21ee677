"""The figures other than heat maps: flips by layer, the ledger's bars, ranked effects, the link scatter."""

from __future__ import annotations

import html

import pandas as pd

from probes.attribution.units import component_name
from probes.reporting.causes import FOUND
from probes.reporting.evidence import TERMS
from probes.reporting.figures import Plot, layout, plains
from probes.reporting.words import layer_name, q_value
from tv.architecture.anatomy import MODULES

#: Okabe and Ito's palette, its blue lightened so that it is readable on black as well.
COLOURS = ("#2a86c8", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a00")
#: Components shown in a ranking.
RANKED = 30


def flips_by_layer(flips: pd.DataFrame, value: str, chance: str, floor: pd.DataFrame | None = None) -> Plot:
    """One line per domain; dotted, chance averaged over domains; dashed, the noise floor of a precision."""
    traces = []
    shown = {"type": "scatter", "hovertemplate": "layer %{x}: %{y:.2%}"}
    for i, (domain, rows) in enumerate(flips.groupby("domain", sort=False)):
        traces.append(
            {
                **shown,
                "x": rows.layer.astype(int).tolist(),
                "y": plains(rows[value]),
                "name": html.escape(str(domain)),
                "mode": "lines+markers",
                "marker": {"symbol": i % 6, "size": 7},
                "line": {"color": COLOURS[i % len(COLOURS)]},
            }
        )
    level = flips.groupby("layer")[chance].mean()
    layers = [int(layer) for layer in level.index]
    dotted = {"name": "chance", "mode": "lines", "line": {"dash": "dot", "color": "#888"}}
    traces.append({**shown, **dotted, "x": layers, "y": plains(level)})
    for precision, rows in floor.groupby("precision", sort=False) if floor is not None else ():
        dashed = {"name": f"base in {precision}", "mode": "lines", "line": {"dash": "dash", "color": "#888"}}
        traces.append({**shown, **dashed, "x": rows.layer.astype(int).tolist(), "y": plains(rows.flip_rate)})
    ticks = {"dtick": 1} if len(layers) <= 16 else {}
    axis = {"rangemode": "tozero", "tickformat": ".0%"}
    return {
        "data": traces,
        "layout": layout(x="layer", y="share of neurons", height=320, legend=True, xaxis=ticks, yaxis=axis),
    }


def ledger_bars(ledger: pd.DataFrame, n_layers: int) -> Plot:
    """Stacked shares of the three terms in the change, one bar per module and layer; negative ones below 0."""
    order = {name: i for i, name in enumerate(MODULES)}
    rows = ledger[ledger.module.isin(order)]
    rows = rows.assign(order=rows.module.map(order)).sort_values(["order", "layer"])
    places = [rows.module.astype(str).tolist(), [layer_name(layer, n_layers) for layer in rows.layer]]
    traces = [
        {
            "type": "bar",
            "x": places,
            "y": plains(rows[term]),
            "name": term,
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}: {term} %{{y:.1%}}<extra></extra>",
        }
        for colour, term in zip(COLOURS, TERMS, strict=False)
    ]
    return {
        "data": traces,
        "layout": layout(
            x="module, and layers within it",
            y="share of the change",
            height=340,
            legend=True,
            xaxis={"tickfont": {"size": 9}, "dividercolor": "rgba(128,128,128,.5)", "showgrid": False},
            yaxis={"tickformat": ".0%", "zeroline": True},
            barmode="relative",
            bargap=0.08,
        ),
    }


def new_directions(ledger: pd.DataFrame) -> Plot:
    """By module: the share of the direct term outside the pretrained subspace, beside its nulls; both bases."""
    columns = ["new_share", "new_share_null", "new_share_of_w", "new_share_10", "new_share_10_of_w"]
    rows = ledger[ledger.module.isin(MODULES)]
    means = rows.groupby("module")[columns].mean().reindex([name for name in MODULES if name in set(rows.module)])
    shown = {"x": means.index.tolist(), "hovertemplate": "%{x}: %{y:.1%}"}
    ten, cut = {"color": COLOURS[0]}, {"color": COLOURS[3]}
    of_w, dots = {"symbol": "diamond", "size": 9, "line": {"width": 1}}, {"type": "scatter", "mode": "markers"}
    null = {"symbol": "line-ew-open", "size": 24, "line": {"width": 3}, "color": COLOURS[5]}
    dashed = {"type": "scatter", "mode": "lines", "line": {"dash": "dash", "color": COLOURS[5]}}
    traces = [
        {**shown, "type": "bar", "y": plains(means.new_share_10), "name": "outside the leading 10 %", "marker": ten},
        {**shown, "type": "bar", "y": plains(means.new_share), "name": "outside the ε = 0.05 subspace", "marker": cut},
        {**shown, **dots, "y": plains(means.new_share_null), "marker": null, "name": "null, ε = 0.05 (1 − k/m)"},
        {**shown, **dots, "y": plains(means.new_share_10_of_w), "marker": of_w | ten, "name": "W x itself, 10 %"},
        {**shown, **dots, "y": plains(means.new_share_of_w), "marker": of_w | cut, "name": "W x itself, ε = 0.05"},
        {**shown, **dashed, "y": [0.9] * len(means), "name": "null, 10 % (0.9)"},
    ]
    axis = {"range": [0, 1], "tickformat": ".0%"}
    return {"data": traces, "layout": layout(y="share of squared norm", height=340, legend=True, yaxis=axis)}


def ranked_effects(effects: pd.DataFrame) -> Plot:
    """The components with the largest effects, largest on top, with 95 % intervals; filled where q is small."""
    ranked = effects.loc[effects.effect.abs().sort_values(ascending=False).index].head(RANKED)[::-1]
    names = [component_name(layer, component) for layer, component in zip(ranked.layer, ranked.component, strict=True)]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": plains(ranked.effect),
        "y": names,
        "marker": {
            "size": 9,
            "color": COLOURS[0],
            "symbol": ["circle" if significant else "circle-open" for significant in ranked.q < FOUND],
        },
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": plains(ranked.hi - ranked.effect),
            "arrayminus": plains(ranked.effect - ranked.lo),
            "thickness": 1.4,
            "color": COLOURS[0],
        },
        "customdata": [q_value(q) for q in ranked.q],
        "hovertemplate": "%{y}: %{x:.4g}, %{customdata}<extra></extra>",
    }
    zero = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"width": 1, "color": "#888"}}
    return {
        "data": [dots],
        "layout": layout(x="effect", height=80 + 21 * len(ranked), yaxis={"type": "category"}, shapes=[zero]),
    }


def scatter(rows: pd.DataFrame, x: str, y: str, x_title: str, y_title: str) -> Plot:
    """Two measures of the link against each other, one colour per module (or component)."""
    traces = []
    for i, (group, points) in enumerate(rows.groupby(rows.module.where(rows.module != "", rows.component), sort=False)):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": plains(points[x]),
                "y": plains(points[y]),
                "name": str(group),
                "text": [f"layer {layer}" for layer in points.layer],
                "marker": {"size": 9, "color": COLOURS[i % len(COLOURS)], "symbol": i % 7},
                "hovertemplate": "%{text}: %{x:.4g}, %{y:.4g}",
            }
        )
    return {"data": traces, "layout": layout(x=x_title, y=y_title, height=420, legend=True)}


def empty_scatter() -> Plot:
    """The link scatter: the page fills it with the measures that the reader picks."""
    free = {"fixedrange": False}
    return {
        "data": [],
        "layout": layout(x="x", y="y", height=440, legend=True, xaxis=free, yaxis=free, dragmode="zoom"),
    }
