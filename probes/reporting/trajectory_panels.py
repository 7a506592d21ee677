"""Activations beyond gates and norms: the logit lens of both models, repurposed neurons, the router's choices."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd

from probes.reporting.causes import domains_in
from probes.reporting.charts import COLOURS
from probes.reporting.evidence import Evidence, rows_of
from probes.reporting.figures import Plot, layout, plains
from probes.reporting.panels import Figure, Panel, Table
from probes.reporting.words import percent
from probes.store.run import Run

#: Neurons in the list of those that fine-tuning repurposed.
NEURONS = 20
_LENS = "prompt_id layer rank_base rank_tuned prob_base prob_tuned kl"


def trajectory_panels(key: str, evidence: Evidence, run: Run) -> list[Panel]:
    """What of these the run has measured of one tuned model."""
    own = [("tuned", "==", evidence.tuned)]
    domain_of = rows_of(run, "prompts", "prompt_id domain", []).set_index("prompt_id").domain
    lens = rows_of(run, "lens", _LENS, own)
    overlap = rows_of(run, "changes", "prompt_id layer expert_overlap", own).dropna(subset="expert_overlap")
    panels = [
        _lens(key, evidence, lens.assign(domain=lens.prompt_id.map(domain_of))),
        _experts(key, overlap.assign(domain=overlap.prompt_id.map(domain_of))),
        _neurons(
            key, rows_of(run, "neurons", "domain layer expert neuron n n_flips n_active_base n_active_tuned", own)
        ),
    ]
    return [panel for panel in panels if panel is not None]


def _lens(key: str, evidence: Evidence, lens: pd.DataFrame) -> Panel | None:
    """Where in depth the target rises in both models, domain by domain."""
    lens = lens.dropna(subset=["rank_base"])
    if lens.empty:
        return None
    domains = domains_in(lens, evidence.effects, evidence.behaviour)
    ranks, chances, distances = [], [], []
    for domain in domains:
        by_layer = lens[lens.domain == domain].groupby("layer")
        ranks.append(_both(by_layer[["rank_base", "rank_tuned"]].median() + 1, "rank, 1 is the top", log=True))
        chances.append(_both(by_layer[["prob_base", "prob_tuned"]].mean(), "probability"))
        distances.append(_one(by_layer.kl.mean(), "KL(base ‖ tuned), nats"))
    note = (
        "Each layer's residual stream read through its own model's final norm and unembedding, at the place before the "
        "target. Where the two lines part is where the tuned model begins to say something else; early layers need not "
        "be readable this way in either model."
    )
    found = [
        Figure(f"{key}-lens-rank", "Rank of the target, median over prompts", ranks),
        Figure(f"{key}-lens-prob", "Probability of the target, mean", chances),
        Figure(f"{key}-lens-kl", "Distance of the two models, mean", distances),
    ]
    choices = [f"{domain} prompts" for domain in domains]
    return Panel("Logit lens: at which depth does the answer appear?", note, found, choices, "prompts")


def _experts(key: str, overlap: pd.DataFrame) -> Panel | None:
    if overlap.empty:
        return None
    means = overlap.groupby(["domain", "layer"], sort=False).expert_overlap.mean().unstack("domain")
    plot = _lines(means, list(means.columns), "shared experts", {"range": [0, 1.02], "tickformat": ".0%"})
    note = "The share of a token's experts that both models' routers chose, mean over tokens. 100 %: same experts."
    return Panel("Router: the same experts?", note, [Figure(f"{key}-experts", "", [plot])], wide=True)


def _neurons(key: str, neurons: pd.DataFrame) -> Panel | None:
    if neurons.empty or not neurons.n_flips.any():
        return None
    top = neurons.assign(rate=neurons.n_flips / neurons.n).nlargest(NEURONS, "rate")
    cells = [
        (
            f"{row['layer']}.{row['neuron']}"
            if row["expert"] < 0
            else f"{row['layer']}.{row['expert']}.{row['neuron']}",
            str(row["domain"]),
            percent(row["rate"]),
            percent(row["n_active_base"] / row["n"]),
            percent(row["n_active_tuned"] / row["n"]),
            f"{row['n']:.0f}",
        )
        for row in top.to_dict("records")
    ]
    columns = ("layer.neuron", "prompts", "flipped", "open in base", "open in tuned", "tokens")
    note = (
        f"The {NEURONS} neurons whose gate differs on most tokens of a domain. One that went from mostly shut to "
        "mostly open was repurposed; one that flips half the time around 0 may carry nothing."
    )
    return Panel("Neurons that changed sides", note, [], tables=[Table(f"{key}-neurons", "", columns, cells)])


def _both(means: pd.DataFrame, title: str, *, log: bool = False) -> Plot:
    axis = {"type": "log", "autorange": "reversed"} if log else {"rangemode": "tozero"}
    return _lines(means.set_axis(["base", "tuned"], axis=1), ["base", "tuned"], title, axis)


def _one(mean: pd.Series, title: str) -> Plot:
    return _lines(mean.to_frame("KL"), ["KL"], title, {"rangemode": "tozero"})


def _lines(means: pd.DataFrame, names: list[str], title: str, axis: dict) -> Plot:
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
        for i, name in enumerate(names)
    ]
    return {"data": traces, "layout": layout(x="layer", y=title, height=320, legend=len(names) > 1, yaxis=axis)}
