"""What each component adds to the residual stream, tuned against base."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting import figures
from probes.reporting.behind import behind
from probes.reporting.chapter import Chapter, panel
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import components_in_words
from tv.architecture.anatomy import in_order


@panel("activations", order=20, needs=["changes"])
def contribution_change(chapter: Chapter) -> Iterator[Panel]:
    """Size and direction of the change, layer by component."""
    changes, n_layers = chapter.evidence.changes, chapter.evidence.n_layers
    if changes.empty:
        return
    order = in_order(changes.component)
    away = changes.assign(away=1 - changes.cosine)
    whole = [("head", "==", -1), ("expert", "==", -1)]
    measured = {"relative": "relative_change", "away": "1 - cosine"}
    own = behind(chapter, "changes", "component relative_change cosine", measured, "component", whole)
    by_change, by_angle = (own.rename(columns={name: "value"}) for name in measured)
    relative = figures.heatmap(changes, "relative_change", "component", order, n_layers, behind=by_change)
    turned = figures.heatmap(away, "away", "component", order, n_layers, hover=["cosine"], behind=by_angle)
    note = (
        "What each component adds to the residual stream, tuned against base, mean over positions and prompts. A "
        "component can change without its own weights moving: its input changed. The ledger below tells the two "
        f"apart. {components_in_words(order)}"
    )
    maps = [
        Figure("relative", "Relative change ‖Δ‖/‖base‖", [relative]),
        Figure("turned", "Change of direction, 1 − cosine", [turned]),
    ]
    yield Panel("Contribution change", note, maps)
