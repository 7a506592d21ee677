"""Patch, as suites and command lines know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from probes.attribution.written import GRANULARITIES, is_written
from probes.methods import Cost, attribution_method

if TYPE_CHECKING:
    from probes.attribution.effects import Effects
    from probes.attribution.units import Unit
    from probes.attribution.work import Work
    from tv.architecture.anatomy import Architecture


def _cost(architecture: Architecture, units: Sequence[Unit], _settings: Any) -> Cost:
    """Both ways: the other model once, this one as it is, and with every output replaced."""
    return Cost(2 * (2 + sum(is_written(unit, architecture) for unit in units)))


@attribution_method(
    "patch",
    words="patch effect",
    explains="Patch: run one model with this component's output taken from the other.",
    granularities=GRANULARITIES,
    order=20,
    cost=_cost,
)
def patch(work: Work, units: Sequence[Unit]) -> Iterator[Effects]:
    """See `probes.attribution.methods.patch.patch`."""
    from probes.attribution.methods.patch import patch

    return patch(work, units)
