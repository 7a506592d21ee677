"""The link between what moved in the weights and what changed."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting import charts
from probes.reporting.chapter import Chapter, panel
from probes.reporting.panel import Figure, Panel


@panel("link", order=10, needs=["link"])
def link_scatter(chapter: Chapter) -> Iterator[Panel]:
    """The scatter that the reader fills."""
    if chapter.evidence.link.empty:
        return
    note = (
        "A point is a module, or a component, of one layer. Pick a measure for each axis; point at a dot to see which."
    )
    figure = Figure("scatter", "", [charts.empty_scatter()], "scatter")
    yield Panel("Weight measure against activation or causal measure", note, [figure], wide=True)
