"""Shapley, as suites and command lines know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from probes.methods import Cost, attribution_method

if TYPE_CHECKING:
    from probes.attribution.effects import Effects
    from probes.attribution.units import Unit
    from probes.attribution.work import Work
    from tv.architecture.anatomy import Architecture

Orders = Annotated[int, Field(strict=True, ge=1, le=1_000_000, description="Orders drawn, each taken both ways.")]


def _cost(architecture: Architecture, units: Sequence[Unit], settings: Any) -> Cost:
    """The empty set, the whole one, and those between of every order, both ways; some sets may be drawn twice."""
    from probes.attribution.units import components

    n = len(units or components(architecture))
    return Cost(2 + 2 * settings.orders * (n - 1))


@attribution_method(
    "shapley",
    words="Shapley effect",
    explains="Shapley: what this component adds on average, whichever others were moved before it.",
    streams=True,
    order=50,
    cost=_cost,
)
def shapley(work: Work, units: Sequence[Unit], *, orders: Orders = 10) -> Iterator[Effects]:
    """See `probes.attribution.methods.shapley.shapley`."""
    from probes.attribution.methods.shapley import shapley

    return shapley(work, units, orders=orders)
