"""The figure of a repair: gain kept against damage undone."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative

_COLOURS = qualitative.Safe


def frontier(curve: pd.DataFrame, chosen: pd.DataFrame, keep_at_least: float) -> go.Figure:
    """Every point of every method on held-out prompts, with the chosen ones, and what of the gain was to be kept."""
    figure = go.Figure()
    for i, method in enumerate(dict.fromkeys(curve.method)):
        points = curve[curve.method == method]
        colour = _COLOURS[i % len(_COLOURS)]
        is_line = method in set(chosen.method[chosen.setting_first.notna()])
        figure.add_trace(
            go.Scatter(
                x=points.kept,
                y=points.undone,
                mode="lines+markers" if is_line else "markers",
                name=method,
                legendgroup=method,
                line={"color": colour},
                marker={"color": colour, "size": 6 if is_line else 4},
                customdata=points.setting,
                hovertemplate="kept %{x:.1%}, undone %{y:.1%}, setting %{customdata:.3g}",
            )
        )
        best = chosen[chosen.method == method]
        figure.add_trace(
            go.Scatter(
                x=best.kept,
                y=best.undone,
                mode="markers",
                marker={"color": colour, "size": 12, "symbol": "diamond"},
                error_x=_ends(best, "kept"),
                error_y=_ends(best, "undone"),
                name=f"{method}, chosen",
                legendgroup=method,
                showlegend=False,
            )
        )
    figure.add_vline(keep_at_least, line={"dash": "dot", "color": "grey"})
    figure.update_xaxes(title_text="share of the gain kept", tickformat=".0%", range=[-0.05, 1.1])
    figure.update_yaxes(title_text="share of the damage undone", tickformat=".0%", range=[-0.5, 1.25])
    return figure.update_layout(height=560, template="plotly_white")


def _ends(rows: pd.DataFrame, name: str) -> dict[str, object]:
    above, below = rows[f"{name}_hi"] - rows[name], rows[name] - rows[f"{name}_lo"]
    return {"type": "data", "symmetric": False, "array": above.fillna(0), "arrayminus": below.fillna(0), "thickness": 1}
