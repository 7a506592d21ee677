"""Path, as suites and command lines know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from probes.attribution.nodes import MOST_NODES, NODES, TOLERANCE
from probes.methods import Cost, attribution_method

if TYPE_CHECKING:
    from probes.attribution.checks import Check
    from probes.attribution.effects import Effects
    from probes.attribution.units import Unit
    from probes.attribution.work import Rows, Work
    from tv.architecture.anatomy import Architecture

Nodes = Annotated[int, Field(strict=True, ge=1, le=256)]


def _cost(_architecture: Architecture, _units: Sequence[Unit], settings: Any) -> Cost:
    """Both ends, and a forward with its backward at every node; a prompt that needs more keeps those it has."""
    return Cost(2 + settings.nodes, settings.nodes, 2 + settings.most_nodes)


def _enough_nodes(nodes: int, most_nodes: int, **_others: object) -> None:
    if most_nodes < nodes:
        raise ValueError(f"most_nodes {most_nodes} is below nodes {nodes}")


@attribution_method(
    "path",
    words="path effect",
    explains="Path: what this component's own step added along the way from base to tuned; the shares sum to the whole "
    "change.",
    tables=("token_effects", "neuron_effects"),
    link=True,
    float32=True,
    streams=True,
    order=0,
    require=_enough_nodes,
    cost=_cost,
)
def path(
    work: Work,
    units: Sequence[Unit],
    *,
    nodes: Annotated[Nodes, Field(description="Nodes of the path's integral, to begin with.")] = NODES,
    most_nodes: Annotated[Nodes, Field(description="Nodes at most, where the shares do not add up.")] = MOST_NODES,
    tolerance: Annotated[float, Field(gt=0, lt=1, description="The completeness gap that is good enough.")] = TOLERANCE,
) -> Iterator[Effects | Rows | Check]:
    """See `probes.attribution.methods.path.path`."""
    from probes.attribution.methods.path import path

    return path(work, units, nodes=nodes, most_nodes=most_nodes, tolerance=tolerance)
