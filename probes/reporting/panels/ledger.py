"""The ledger: what a module's own weights did to its output, what came in with its input, and whether it is new."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting import charts, figures
from probes.reporting.chapter import Chapter, panel
from probes.reporting.panel import Figure, Panel
from tv.architecture.anatomy import MODULES


@panel("activations", order=30, needs=["ledger"])
def terms(chapter: Chapter) -> Iterator[Panel]:
    """Direct, inherited and interaction, one bar per module and layer."""
    ledger = chapter.evidence.ledger[chapter.evidence.ledger.module.isin(MODULES)]
    if ledger.empty:
        return
    note = (
        "Every change of a module's output is exactly the sum of three terms: direct (its own weights moved, T x), "
        "inherited (its input moved, W Δx) and interaction (T Δx). Bars are their projections on the change, which sum "
        "to 1; a term below 0 pushed against the change. There is no bar where the terms cancel or the change is "
        "rounding."
    )
    bars = charts.ledger_bars(ledger, chapter.evidence.n_layers)
    yield Panel(
        "Ledger: own doing or inherited?", note, [Figure("terms", "Direct, inherited, interaction", [bars])], wide=True
    )


@panel("activations", order=40, needs=["ledger"])
def new_directions(chapter: Chapter) -> Iterator[Panel]:
    """The share of the direct term outside the pretrained output subspace, beside its nulls."""
    ledger, n_layers = chapter.evidence.ledger, chapter.evidence.n_layers
    split = ledger[ledger.module.isin(MODULES) & ledger.new_share_10.notna()]
    if split.empty:
        return
    split = split.assign(over_10=100 * (split.new_share_10 - 0.9), over=100 * (split.new_share - split.new_share_null))
    far = max(10.0, float(split[["over_10", "over"]].abs().max().max()))
    ten, cut = (
        figures.heatmap(split, value, "module", MODULES, n_layers, centre=0, reach=far, hover=hover)
        for value, hover in (
            ("over_10", ["new_share_10", "new_share_10_of_w"]),
            ("over", ["new_share", "new_share_null", "new_share_of_w"]),
        )
    )
    note = (
        "Of the direct term, the share outside the pretrained output subspace, on the inputs that really "
        "occurred, against what a T with no preferred direction gives and (diamonds) what W writes there itself, as a "
        "T that is a multiple of W would. Orange writes newer directions than chance, blue older ones."
    )
    plots = [
        Figure("new", "Mean over layers, beside the nulls", [charts.new_directions(split)]),
        Figure("new10", "Leading 10 %: share − 0.9, in points", [ten]),
        Figure("newk", "ε = 0.05: share − (1 − k/m), in points", [cut]),
    ]
    yield Panel("Does the direct term write new directions?", note, plots)
