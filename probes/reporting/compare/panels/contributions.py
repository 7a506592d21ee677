"""Contribution changes of several entries."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting.compare import charts
from probes.reporting.compare.arranging import FROM_ZERO
from probes.reporting.compare.comparison import Comparison, compare_panel
from probes.reporting.panel import Figure, Panel
from tv.architecture.anatomy import in_order


@compare_panel("activations", order=20, needs=["changes"])
def contribution_change(compared: Comparison) -> Iterator[Panel]:
    """The relative change by depth, one figure per component."""
    changes = compared.laid(lambda entry: entry.evidence.changes)
    if changes.empty:
        return
    plots = [
        Figure(
            f"change-{component}",
            f"{component}: relative change ‖Δ‖/‖base‖",
            [charts.by_depth(rows, "relative_change", compared.layers, title="‖Δ‖/‖base‖", axis=FROM_ZERO)],
        )
        for component in in_order(changes[changes.layer >= 0].component)
        if len(rows := changes[changes.component == component])
    ]
    note = (
        "What each component adds to the residual stream, tuned against base, mean over prompts; due to its own "
        "weights or inherited through its input." + compared.lacking(changes)
    )
    yield Panel("Contribution change", note, plots)
