"""Which units graft and revert move where they move only some: those that path leads with, and a sample of the others.

The sample is the proof: how path and the exact method rank it says what the units that nobody moved may hide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from probes.attribution.effects import Effects, in_domains
from probes.attribution.units import Unit
from tv.runtime.seeds import seed_of

if TYPE_CHECKING:
    from probes.attribution.work import Work

#: So many units of a granularity are moved: those that path leads with, and others that are drawn. Where there are no
#: more than that, all are.
LEADING, SAMPLED = 12, 12


@dataclass(frozen=True)
class Chosen:
    """The units to move, in the order given; `sampled` are those that were drawn, and `left_out` were not."""

    units: tuple[Unit, ...]
    sampled: frozenset[Unit] = frozenset()
    left_out: int = 0


def chosen(work: Work, units: Sequence[Unit]) -> Chosen:
    """Of many units some: all where path has not ranked them.

    A unit leads by the largest |mean share| that it has in any domain. The sample is drawn by the units' names and the
    seed, so that it does not depend on the ranking of what is drawn from.

    Args:
        work: What path measured is in `measured`.
        units: Of one granularity.
    """
    scores = _scores(work.measured, units, work.domains)
    if len(units) <= LEADING + SAMPLED or not scores:
        return Chosen(tuple(units))
    ranked = sorted(units, key=lambda unit: -scores.get(unit, 0.0))
    drawn = sorted(ranked[LEADING:], key=lambda unit: seed_of(f"exact {work.seed} {unit}"))[:SAMPLED]
    moved = {*ranked[:LEADING], *drawn}
    return Chosen(tuple(unit for unit in units if unit in moved), frozenset(drawn), len(units) - len(moved))


def _scores(measured: Sequence[Effects], units: Sequence[Unit], domains: Mapping[str, str]) -> dict[Unit, float]:
    """By unit, how far path says that it moves the metric of the domain where it moves it most; {} if nobody knows."""
    asked = set(units)
    found = [each for each in measured if each.method == "path" and not each.control and asked & {*each.units}]
    if not found:
        return {}
    (path,) = found
    inside = [path.over(prompts).values for prompts in in_domains(domains).values()]
    sizes = [np.abs(values.mean(1)) for values in inside if values.size]
    largest = np.max(np.nan_to_num(sizes, nan=-1.0), axis=0, initial=-1.0)
    return dict(zip(path.units, largest.tolist(), strict=True)) if (largest > 0).any() else {}
