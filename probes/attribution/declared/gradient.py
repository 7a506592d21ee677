"""Gradient, as suites and command lines know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from probes.attribution.written import GRANULARITIES
from probes.methods import Cost, attribution_method

if TYPE_CHECKING:
    from probes.attribution.effects import Effects
    from probes.attribution.units import Unit
    from probes.attribution.work import Work
    from tv.architecture.anatomy import Architecture


def _cost(_architecture: Architecture, _units: Sequence[Unit], _settings: Any) -> Cost:
    """Both ways: the other model once, and this one with a backward pass."""
    return Cost(4, 2)


@attribution_method(
    "gradient",
    words="gradient effect",
    explains="Gradient: the change of this component's output, times the metric's gradient there.",
    granularities=GRANULARITIES,
    order=21,
    cost=_cost,
)
def gradient(work: Work, units: Sequence[Unit]) -> Iterator[Effects]:
    """See `probes.attribution.methods.gradient.gradient`."""
    from probes.attribution.methods.gradient import gradient

    return gradient(work, units)
