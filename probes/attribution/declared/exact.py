"""Graft and revert, as suites and command lines know them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from probes.methods import Cost, attribution_method

if TYPE_CHECKING:
    from probes.attribution.effects import Effects
    from probes.attribution.units import Unit
    from probes.attribution.work import Rows, Work
    from tv.architecture.anatomy import Architecture

_EVERY = ("component", "module", "head", "kv_head", "expert", "neuron")
Draws = Annotated[
    int, Field(strict=True, ge=1, le=10_000, description="Draws of each control vector, grafted whole in T's place.")
]
Neurons = Annotated[
    int, Field(strict=True, ge=1, le=1_000_000, description="The neurons that are moved one by one: the first of path.")
]


Exact = Annotated[
    Literal["auto", "all"],
    Field(description="auto: of more than 24 units the 12 that path leads with, and 12 drawn from the others; all."),
]


def _cost(architecture: Architecture, units: Sequence[Unit], settings: Any) -> Cost:
    """The model as it is and with every unit moved; with the whole T, its controls."""
    from probes.attribution.chosen import LEADING, SAMPLED
    from probes.attribution.units import WHOLE, components

    moved = len(units)
    if units[0].granularity == "neuron" and moved > settings.neurons:
        moved = settings.neurons
    elif settings.exact == "auto" and "path" in settings.methods:
        moved = min(moved, LEADING + SAMPLED)
    if WHOLE not in units or "graft" not in settings.methods:
        return Cost(1 + moved)
    by_component = (1 + len(components(architecture))) * bool(getattr(settings, "component_controls", False))
    return Cost(1 + moved + len(settings.controls) * (settings.control_draws + by_component))


@attribution_method(
    "graft",
    words="graft effect",
    explains="Graft: give the base this one component of the tuned model.",
    granularities=(*_EVERY, "all"),
    tables=("control_draws",),
    labels={"mean": "mean of graft and revert", "synergy": "revert − graft"},
    link=True,
    streams=True,
    order=10,
    cost=_cost,
)
def graft(
    work: Work,
    units: Sequence[Unit],
    *,
    exact: Exact = "auto",
    neurons: Neurons = 20,
    control_draws: Draws = 20,
    component_controls: Annotated[bool, Field(description="Graft controls component by component too.")] = False,
) -> Iterator[Effects | Rows]:
    """See `probes.attribution.methods.exact.graft`."""
    from probes.attribution.methods import exact as methods

    return methods.graft(
        work,
        units,
        exact=exact,
        neurons=neurons,
        control_draws=control_draws,
        component_controls=component_controls,
    )


@attribution_method(
    "revert",
    words="revert effect",
    explains="Revert: take this one component away from the tuned model.",
    granularities=_EVERY,
    link=True,
    streams=True,
    order=11,
    cost=_cost,
)
def revert(work: Work, units: Sequence[Unit], *, exact: Exact = "auto", neurons: Neurons = 20) -> Iterator[Effects]:
    """See `probes.attribution.methods.exact.revert`."""
    from probes.attribution.methods import exact as methods

    return methods.revert(work, units, exact=exact, neurons=neurons)
