"""Which units write into the residual stream where hooks read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.attribution.units import Unit
    from tv.architecture.anatomy import Architecture

#: The granularities that do; the unembedding writes no residual stream.
GRANULARITIES = ("component", "head")


def is_written(unit: Unit, architecture: Architecture) -> bool:
    """Whether a unit writes into the residual stream where hooks read it: a component, a head, the embedding."""
    if unit.granularity not in GRANULARITIES or not unit.layer < architecture.n_layers:
        return False
    if unit.layer < 0:
        return unit.component == "embed"
    writer = architecture.blocks[unit.layer].writer(unit.component)
    return writer is not None and (unit.granularity == "component" or writer.head_in is not None)
