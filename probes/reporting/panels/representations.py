"""Representations: how far both models are apart, of which directions Δh is made, and what these do."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting.causes import domains_in
from probes.reporting.chapter import Chapter, panel
from probes.reporting.figures import Plot
from probes.reporting.layer_lines import Line, over_layers
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import effect_metric_name, prompts_of

_MEASURES = {
    "cka": "CKA without bias (1: alike)",
    "procrustes": "Procrustes distance (0: alike)",
    "neighbours": "Nearest prompts that agree (1: alike)",
}


@panel("directions", order=50, needs=["distances"])
def distances(chapter: Chapter) -> Iterator[Panel]:
    """The three measures by layer, one version for each site."""
    rows = chapter.rows("distances").sort_values("layer")
    if rows.empty:
        return
    figures = []
    for measure, title in _MEASURES.items():
        plots = []
        for _, own in rows[rows.measure == measure].groupby("site", sort=False):
            lines = [
                Line("base and tuned", own, "value", ("lo", "hi")),
                Line("base in another precision", own, "rounded", null=True),
                Line("base + random T", own, "random", null=True),
                Line("unrelated: other prompts", own, "shuffled", null=True),
            ]
            plots.append(over_layers(lines, measure))
        figures.append(Figure(f"distance-{measure}", title, plots))
    note = (
        "Each measure compares which prompts lie near each other, at one place a prompt; turning or scaling all states "
        "changes none of them. Tuning shows where the line is farther from alike than rounding and than random steps "
        "of T's size. They mislead: a few prompts of large norm make most of CKA; prompts of one cluster are "
        "neighbours whatever the model; with fewer prompts than dimensions Procrustes finds unrelated states near "
        "(the line of other prompts); and a change that does not matter counts as one that does."
    )
    yield Panel("How far apart are the representations?", note, figures, list(rows.site.unique()), "site", wide=True)


@panel("directions", order=30, needs=["delta_spectrum", "delta_angles"])
def subspaces(chapter: Chapter) -> Iterator[Panel]:
    """Held-out shares of the leading components, and overlaps with the matrices that write."""
    spectrum, angles = (chapter.rows(table).sort_values("layer") for table in ("delta_spectrum", "delta_angles"))
    if spectrum.empty or angles.empty:
        return
    sites = [str(site) for site in spectrum.site.unique()]
    shares: tuple[list[Plot], list[Plot]] = ([], [])
    overlaps: list[Plot] = []
    for site in sites:
        own = spectrum[spectrum.site == site]
        for plots, component in zip(shares, (0, 1), strict=True):
            one = own[own.component == component]
            name = "mean Δh" if component == 0 else "first component"
            lines = [
                Line(name, one, "share", ("lo", "hi")),
                Line("base in another precision", one, "rounded", null=True),
                Line("base + random T", one, "random", null=True),
                Line("the base's own states", one, "states", null=True),
            ]
            plots.append(over_layers(lines, "share, held out", share=True))
        there = angles[(angles.site == site) & (angles["rank"] == _RANK)]
        lines = [Line(str(name), rows, "overlap", ("lo", "hi")) for name, rows in there.groupby("against", sort=False)]
        halves = there[there.against == "other half"]
        lines += [
            Line("other half: random directions", halves, "null_hi", null=True),
            Line("other half: base + random T", halves, "random", null=True),
        ]
        overlaps.append(over_layers(lines, f"overlap of the leading {_RANK}"))
    note = (
        "Components of Δh are made of one half of the prompts and measured on the other. A large share says that Δh is "
        "few directions on prompts that did not choose them; the base's own states say how much any states of this "
        "layer are. Overlap: mean squared cosine of the principal angles with the other half's subspace, and with the "
        "leading directions that the layer's matrices, or their T, write. Random directions are drawn with the "
        "covariance of the base's states, for states fill few dimensions and share them by themselves. The nulls of "
        "each comparison are in the table delta_angles. A share says nothing of behaviour; "
        "“How much of the behaviour is in the leading directions?” does."
    )
    figures = [
        Figure("delta-mean", "Share of mean Δh in ‖Δh‖²", shares[0]),
        Figure("delta-first", "Share of the first component around the mean", shares[1]),
        Figure("delta-overlap", "What the leading subspace of Δh lies along", overlaps),
    ]
    yield Panel("Is Δh a few directions?", note, figures, sites, "site", wide=True)


@panel("directions", order=40, needs=["delta_curve"])
def projections(chapter: Chapter) -> Iterator[Panel]:
    """The effect of growing projections of Δh at the layer where all of it does most."""
    rows = chapter.rows("delta_curve")
    if rows.empty:
        return
    metric = effect_metric_name(str(rows.metric.iloc[0]))
    domains = domains_in(rows, chapter.evidence.effects, chapter.evidence.behaviour)
    if chapter.evidence.effects.empty:  # nothing else says where behaviour changed
        change = rows.groupby("domain").whole.first().abs()
        domains.sort(key=lambda domain: -change[domain])
    by_rank, by_layer = [], []
    for domain in domains:
        own = rows[(rows.domain == domain) & (rows.site == rows.site.iloc[0])].sort_values(["layer", "rank"])
        full = own[own["rank"] == own["rank"].max()]
        layer = int(full.layer.iloc[int(full.effect.abs().to_numpy().argmax())])
        here = own[own.layer == layer]
        lines = [Line(words, here[here.basis == basis], "effect", ("lo", "hi")) for basis, words in _BASES.items()]
        by_rank.append(
            over_layers(lines, f"{metric}, layer {layer}", x="rank", x_title="directions", log=True, zero=True)
        )
        kinds = {f"leading {r}": own[(own.basis == "delta") & (own["rank"] == r)] for r in (1, _RANK, 16)}
        lines = [Line(name, part, "effect", ("lo", "hi")) for name, part in kinds.items()]
        lines += [
            Line("all of Δh", full, "effect", ("lo", "hi")),
            Line(f"{_RANK} random", own[(own.basis == "random") & (own["rank"] == _RANK)], "effect", null=True),
            Line("the whole change", full, "whole", null=True),
        ]
        by_layer.append(over_layers(lines, metric, zero=True))
    note = (
        "The base runs with only a part of Δh added at one layer, at every position: its leading r directions, all but "
        "these, as many directions of the base's own states, or random ones. Directions were made of the other half of "
        "the prompts. A change that lives in few directions rises early and leaves nothing to the others; one that is "
        "spread out follows the random line. At the right end all of Δh is patched, which misses the whole change by "
        "what later layers do of themselves. Leading means large, not important: a small direction may do most."
    )
    figures = [
        Figure("projection-rank", "Effect of r directions, where all of Δh does most", by_rank),
        Figure("projection-layer", "Effect by layer", by_layer),
    ]
    yield Panel(
        "How much of the behaviour is in the leading directions?",
        note,
        figures,
        list(map(prompts_of, domains)),
        "prompts",
        wide=True,
    )


#: Directions of the subspaces that figures show.
_RANK = 4
_BASES = {
    "delta": "the leading r of Δh",
    "complement": "all but these",
    "states": "the leading r of the base's states",
    "random": "r random ones",
}
