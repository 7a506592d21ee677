"""Depth, as suites and command lines know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from probes.methods import Cost, attribution_method

if TYPE_CHECKING:
    from probes.attribution.units import Unit
    from probes.attribution.work import Rows, Work
    from tv.architecture.anatomy import Architecture


def _cost(architecture: Architecture, _units: Sequence[Unit], _settings: Any) -> Cost:
    """Either model as it is, and cut before every layer and after the last."""
    return Cost(2 * (2 + architecture.n_layers))


@attribution_method(
    "depth",
    words="depth",
    explains="Depth: the first layers of one model, followed by the rest of the other.",
    tables=("depth",),
    effects=False,
    streams=True,
    order=30,
    cost=_cost,
)
def depth(work: Work, units: Sequence[Unit]) -> Iterator[Rows]:
    """See `probes.attribution.methods.depth.depth`."""
    from probes.attribution.methods.depth import depth

    return depth(work, units)
