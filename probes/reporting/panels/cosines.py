"""Every tuning vector of the run against every other, over the whole model and by layer."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting import weight_charts
from probes.reporting.chapter import Chapter, panel
from probes.reporting.evidence import rows_of
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import layer_name


@panel("weights", order=60, needs=["cosines"])
def cosines(chapter: Chapter) -> Iterator[Panel]:
    """Cosines between tuning vectors, one matrix per scope."""
    rows = rows_of(chapter.run, "cosines", "", [])
    if rows.empty:
        return
    names = list(dict.fromkeys([*rows.tuned, *rows.reference]))
    scopes = {"all parameters": rows[rows.scope == "whole"]}
    for layer, in_layer in rows[rows.scope == "layer"].groupby("layer"):
        where = layer_name(int(layer), chapter.evidence.n_layers)
        scopes[f"layer {where}" if where.isdigit() else f"{where}ding"] = in_layer
    note = (
        "Cosine between tuning vectors. In so many dimensions two unrelated vectors have a cosine near 0, so point "
        "at a cell to see how far beyond chance it is. Orange: the same way; blue: in opposite ways."
    )
    plots = [weight_charts.cosine_matrix(in_scope, names) for in_scope in scopes.values()]
    yield Panel(
        "Against the other tuning vectors", note, [Figure("cosines", "Cosine of T", plots)], list(scopes), "over"
    )
