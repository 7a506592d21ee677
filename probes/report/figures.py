"""The report's figures: DataFrames in, Plotly figures out. Colours serve colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

MODULES = ("q", "k", "v", "o", "gate", "up", "down")
#: Blue – white – orange, for signed values.
DIVERGING = [[0, "#1f5fa8"], [0.25, "#86b3dc"], [0.5, "#f3f3f0"], [0.75, "#f2b06b"], [1, "#b85a00"]]
#: Okabe and Ito's palette.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a8a00")


def heatmap(
    frame: pd.DataFrame,
    value: str,
    column: str,
    order: Sequence[str],
    *,
    signed_around: float | None = None,
    top: float | None = None,
    marked: str | None = None,
) -> go.Figure:
    """Layer × `column` map of `value`, depth upwards. `signed_around` centres a diverging scale, `marked` stars "
    "cells."""
    names = [name for name in order if name in set(frame[column])]
    table = frame.pivot_table(index="layer", columns=column, values=value, sort=True)[names]
    z = table.to_numpy(float)
    colours: dict[str, object] = {"colorscale": "Cividis", "zmin": 0, "zmax": top}
    ticks: list[float] = []
    if signed_around is not None:
        reach = top or float(np.nanmax(np.abs(z - signed_around), initial=0)) or 1.0
        colours = {"colorscale": DIVERGING, "zmin": signed_around - reach, "zmax": signed_around + reach}
        if signed_around > 0:  # a ratio: what the scale would show below zero cannot be
            ticks = [value for value in np.linspace(0, 2 * signed_around, 5).tolist() if value >= signed_around - reach]
            ticks += [float(np.floor(signed_around + reach))] * (reach > 2 * signed_around)
    figure = go.Figure(
        go.Heatmap(
            z=_listed(z),
            x=names,
            y=[str(layer) for layer in table.index],
            hovertemplate="layer %{y}, %{x}: %{z:.4g}<extra></extra>",
            colorbar={"thickness": 10, "outlinewidth": 0} | ({"tickvals": ticks} if ticks else {}),
            **colours,
        )
    )
    if marked is not None:
        stars = frame[frame[marked].astype(bool)]
        figure.add_scatter(
            x=stars[column].tolist(),
            y=[str(layer) for layer in stars.layer],
            mode="text",
            text=["∗"] * len(stars),
            hoverinfo="skip",
            textfont={"color": "#ffffff", "size": 14},
        )
    return _framed(figure, y="layer", height=90 + 26 * len(table))


def flips_by_layer(gates: pd.DataFrame) -> go.Figure:
    """Flip rate by layer, a line a domain, and the chance level over all."""
    figure = go.Figure()
    for colour, (domain, rows) in zip(COLOURS * 10, gates.groupby("domain", sort=False), strict=False):
        means = rows.groupby("layer").flip_rate.mean()
        figure.add_scatter(
            x=means.index.tolist(), y=_listed(means), name=str(domain), mode="lines+markers", line_color=colour
        )
    chance = gates.groupby("layer").chance_flip_rate.mean()
    figure.add_scatter(
        x=chance.index.tolist(),
        y=_listed(chance),
        name="unrelated patterns",
        mode="lines",
        line={"dash": "dot", "color": "#888"},
    )
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    return _framed(figure, x="layer", y="share of neurons", height=300, legend=True)


def ledger_shares(link: pd.DataFrame) -> go.Figure:
    """Mean norm of each ledger term by module, as shares of the sum of the three."""
    means = link.groupby("module")[["direct_norm", "inherited_norm", "interaction_norm"]].mean()
    means = means.reindex([name for name in MODULES if name in means.index])
    shares = means.div(means.sum(axis=1).replace(0, np.nan), axis=0)
    figure = go.Figure()
    for colour, name in zip(COLOURS, shares.columns, strict=False):
        figure.add_bar(
            x=shares.index.tolist(), y=_listed(shares[name]), name=name.removesuffix("_norm"), marker_color=colour
        )
    figure.update_layout(barmode="stack")
    figure.update_yaxes(tickformat=".0%")
    return _framed(figure, y="share of the three norms", height=300, legend=True)


def new_directions(link: pd.DataFrame) -> go.Figure:
    """Share of the direct term outside the pretrained output subspace, beside what no direction would give."""
    means = link.groupby("module")[["new_share", "new_share_null", "new_share_10"]].mean()
    means = means.reindex([name for name in MODULES if name in means.index])
    names = means.index.tolist()
    figure = go.Figure()
    figure.add_bar(x=names, y=_listed(means.new_share), name="new, ε = 0.05", marker_color=COLOURS[0])
    figure.add_bar(x=names, y=_listed(means.new_share_10), name="new, 10 %", marker_color=COLOURS[4])
    null = {"symbol": "line-ew-open", "size": 22, "line": {"width": 3}}
    figure.add_scatter(
        x=names,
        y=_listed(means.new_share_null),
        mode="markers",
        name="null, ε = 0.05",
        marker={**null, "color": "#d55e00"},
    )
    figure.add_scatter(
        x=names, y=[0.9] * len(names), mode="lines", name="null, 10 %", line={"dash": "dot", "color": "#d55e00"}
    )
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    return _framed(figure, y="share of squared norm", height=320, legend=True)


def ranked_effects(effects: pd.DataFrame, names: Sequence[str]) -> go.Figure:
    """Components by the size of their effect, with 95 % intervals; filled where q < 0.05."""
    ranked = effects.assign(name=list(names))
    order = ranked.effect.abs().sort_values().index
    ranked = ranked.loc[order]
    figure = go.Figure(
        go.Scatter(
            x=_listed(ranked.effect),
            y=ranked.name.tolist(),
            mode="markers",
            marker={
                "size": 9,
                "color": COLOURS[0],
                "symbol": ["circle" if q < 0.05 else "circle-open" for q in ranked.q],
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": _listed(ranked.hi - ranked.effect),
                "arrayminus": _listed(ranked.effect - ranked.lo),
                "thickness": 1.2,
            },
            customdata=_listed(ranked.q),
            hovertemplate="%{y}: %{x:.4g}, q = %{customdata:.2g}<extra></extra>",
        )
    )
    figure.add_vline(x=0, line_width=1, line_color="#888")
    return _framed(figure, x="effect on the metric", height=120 + 22 * len(ranked))


def empty_scatter() -> go.Figure:
    """The link scatter; the page fills it from the chosen measures."""
    return _framed(go.Figure(), height=420, legend=True)


def _framed(figure: go.Figure, *, x: str = "", y: str = "", height: int, legend: bool = False) -> go.Figure:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 12, "t": 12, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    figure.update_xaxes(title=x or None, gridcolor="rgba(128,128,128,.25)", zeroline=False, automargin=True)
    figure.update_yaxes(title=y or None, gridcolor="rgba(128,128,128,.25)", zeroline=False, automargin=True)
    return figure


def _listed(values: object) -> list[object]:
    """Plain lists with None for NaN, so that figures are JSON anyone can read."""
    array = np.asarray(values, float)
    return [_listed(row) for row in array] if array.ndim > 1 else [None if np.isnan(v) else float(v) for v in array]
