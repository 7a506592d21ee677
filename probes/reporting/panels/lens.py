"""The logit lens of both models, and the experts that their routers choose: over depth, domain by domain."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from probes.reporting.causes import domains_in
from probes.reporting.chapter import Chapter, panel
from probes.reporting.charts import COLOURS
from probes.reporting.evidence import rows_of
from probes.reporting.figures import Plot, layout, plains
from probes.reporting.panel import Figure, Panel

_LENS = "prompt_id layer rank_base rank_tuned prob_base prob_tuned kl"


@panel("activations", order=50, needs=["lens", "prompts"])
def lens(chapter: Chapter) -> Iterator[Panel]:
    """Where in depth the target rises in both models."""
    rows = _with_domain(chapter, chapter.rows("lens", _LENS)).dropna(subset=["rank_base"])
    if rows.empty:
        return
    domains = domains_in(rows, chapter.evidence.effects, chapter.evidence.behaviour)
    ranks, chances, distances = [], [], []
    for domain in domains:
        by_layer = rows[rows.domain == domain].groupby("layer")
        ranks.append(_both(by_layer[["rank_base", "rank_tuned"]].median() + 1, "rank, 1 is the top", _RANKS))
        chances.append(_both(by_layer[["prob_base", "prob_tuned"]].mean(), "probability", _FROM_ZERO))
        distances.append(_lines(by_layer.kl.mean().to_frame("KL"), "KL(base ‖ tuned), nats", _FROM_ZERO))
    note = (
        "Each layer's residual stream read through its own model's final norm and unembedding, at "
        f"{_places(chapter)}. From where the two lines separate, the tuned model predicts something else; early "
        "layers need not be readable this way in either model."
    )
    plots = [
        Figure("lens-rank", "Rank of the target, median over prompts", ranks),
        Figure("lens-prob", "Probability of the target, mean", chances),
        Figure("lens-kl", "Distance of the two models, mean", distances),
    ]
    choices = [f"{domain} prompts" for domain in domains]
    yield Panel("Logit lens: at which depth does the answer appear?", note, plots, choices, "prompts")


@panel("activations", order=60, needs=["changes", "prompts"])
def experts(chapter: Chapter) -> Iterator[Panel]:
    """The share of a token's experts that both routers chose, by layer."""
    rows = chapter.rows("changes", "prompt_id layer expert_overlap").dropna(subset="expert_overlap")
    if rows.empty:
        return
    shared = _with_domain(chapter, rows).groupby(["domain", "layer"], sort=False).expert_overlap.mean()
    plot = _lines(shared.unstack("domain"), "shared experts", {"range": [0, 1.02], "tickformat": ".0%"})
    note = "The share of a token's experts that both models' routers chose, mean over tokens. 100 %: same experts."
    yield Panel("Router: the same experts?", note, [Figure("experts", "", [plot])], wide=True)


def _with_domain(chapter: Chapter, rows: pd.DataFrame) -> pd.DataFrame:
    prompts = rows_of(chapter.run, "prompts", "prompt_id domain", []).set_index("prompt_id")
    return rows.assign(domain=rows.prompt_id.map(prompts.domain))


def _places(chapter: Chapter) -> str:
    """Where the lens was read, in the words of the note."""
    suite = chapter.run.manifest["suite"]
    count = suite.get("lens_places", "all")  # before there was a choice every place was read
    where = {"target": "the places that predict the target's tokens", "last": "the text's last token"}
    chosen = where.get(suite.get("ledger_positions", "target"), "the places of `ledger_positions`")
    return (
        chosen if count == "all" else f"{chosen} (at most {count} a prompt: the answer's first, others evenly spaced)"
    )


_FROM_ZERO = {"rangemode": "tozero"}
_RANKS = {"type": "log", "autorange": "reversed"}


def _both(means: pd.DataFrame, title: str, axis: Mapping[str, Any]) -> Plot:
    return _lines(means.set_axis(["base", "tuned"], axis=1), title, axis)


def _lines(means: pd.DataFrame, title: str, axis: Mapping[str, Any]) -> Plot:
    """One line per column of `means`, whose index holds the layers."""
    layers = [int(layer) for layer in means.index]
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": layers,
            "y": plains(means[name].to_numpy(np.float64)),
            "name": html.escape(str(name)),
            "line": {"color": COLOURS[i % len(COLOURS)]},
            "marker": {"symbol": i % 6, "size": 7},
            "hovertemplate": "layer %{x}: %{y:.4g}",
        }
        for i, name in enumerate(means.columns)
    ]
    return {"data": traces, "layout": layout(x="layer", y=title, height=320, legend=len(traces) > 1, yaxis=axis)}
