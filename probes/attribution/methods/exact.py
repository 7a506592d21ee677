"""Graft and revert: one unit of the weights moved, one forward pass, nothing approximated. Controls in T's place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from probes.attribution.chosen import Chosen, chosen
from probes.attribution.effects import BACKWARD, FORWARD, Effects, in_domains
from probes.attribution.forwards import Floats, Variant
from probes.attribution.units import WHOLE, Unit, components
from probes.attribution.work import Rows, Work
from probes.errors import RunError
from probes.store.schemas import ALL_DOMAINS


def graft(
    work: Work,
    units: Sequence[Unit],
    *,
    exact: str = "auto",
    neurons: int = 20,
    control_draws: int = 20,
    component_controls: bool = False,
) -> Iterator[Effects | Rows]:
    """M(θ_pre + T_c) − M(θ_pre) for every unit c: what it does alone.

    Args:
        work: The pair, the prompts and the metric.
        units: The units c, of one granularity; the whole T comes with its controls.
        exact: "auto": of many units those that path leads with and a sample, see `probes.attribution.chosen`; "all".
        neurons: Of more neurons than this, only the top ones of path are moved.
        control_draws: Draws of each control, the whole vector at once; a forward each.
        component_controls: Graft the first draw of each control component by component too.

    Raises:
        RunError: There are more neurons than that, and `path` has not ranked them.
    """
    some = _one_by_one(work, units, exact, neurons)
    start, values = work.under([Variant("base", (unit,)) for unit in some.units])
    yield _effects("graft", FORWARD, some, work, values - start)
    if WHOLE in units and work.controls:
        yield from _drawn(work, control_draws)
        if component_controls:
            yield from _by_component(work)


def revert(work: Work, units: Sequence[Unit], *, exact: str = "auto", neurons: int = 20) -> Iterator[Effects]:
    """M(θ_ft) − M(θ_ft − T_c) for every unit c: what the tuned model loses without it.

    Args:
        work: The pair, the prompts and the metric.
        units: The units c, of one granularity.
        exact: "auto": of many units those that path leads with and a sample, see `probes.attribution.chosen`; "all".
        neurons: Of more neurons than this, only the top ones of path are moved.

    Raises:
        RunError: There are more neurons than that, and `path` has not ranked them.
    """
    some = _one_by_one(work, units, exact, neurons)
    start, values = work.under([Variant("tuned", (unit,)) for unit in some.units])
    yield _effects("revert", BACKWARD, some, work, start - values)


def _effects(method: str, direction: str, some: Chosen, work: Work, values: Floats) -> Effects:
    return Effects(method, direction, some.units, work.prompts, values, sampled=some.sampled, left_out=some.left_out)


def _drawn(work: Work, draws: int) -> Iterator[Effects | Rows]:
    """Control vectors in place of the whole T: the mean effect of every draw, and the first one prompt by prompt."""
    domains = {name: np.isin(work.prompts, sorted(prompts)) for name, prompts in in_domains(work.domains).items()}
    rows: list[dict[str, object]] = []
    for kind in work.controls:
        drawn = [Variant("base", (WHOLE,), kind, draw) for draw in range(draws)]
        start, values = work.named(f"control {kind}").under(drawn)
        for draw, effects in enumerate(values - start):
            labels = {"control": kind, "draw": draw}
            rows += [labels | {"domain": name, "effect": np.nanmean(effects[at])} for name, at in domains.items()]
        yield Effects("graft", FORWARD, (WHOLE,), work.prompts, values[:1] - start, kind)
    yield Rows("control_draws", pd.DataFrame(rows))


def _by_component(work: Work) -> Iterator[Effects]:
    """The same controls, grafted component by component."""
    units = tuple(components(work.pair.architecture))
    for kind in work.controls:
        start, values = work.named(f"control {kind}").under([Variant("base", (unit,), kind) for unit in units])
        yield Effects("graft", FORWARD, units, work.prompts, values - start, kind)


def _one_by_one(work: Work, units: Sequence[Unit], exact: str, neurons: int) -> Chosen:
    """The units to move one by one. Of neurons only the top ones of path: there are too many to move all."""
    if not units or units[0].granularity != "neuron" or len(units) <= neurons:
        return Chosen(tuple(units)) if exact == "all" else chosen(work, units)
    if "neuron_effects" not in work.tables:
        raise RunError("attribution by neuron: path chooses the neurons that are moved one by one; add it to methods")
    shares = work.tables["neuron_effects"]
    over_all = shares[shares.domain == ALL_DOMAINS]
    first = over_all.loc[over_all.effect.abs().nlargest(neurons).index]
    places = set(zip(first.layer, first.expert, first.neuron, strict=True))
    return Chosen(tuple(unit for unit in units if (unit.layer, unit.expert, unit.neuron) in places))
