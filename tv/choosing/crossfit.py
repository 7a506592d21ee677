"""Choices made on one half of the prompts and tested on the other, so that no prompt tests a choice that saw it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tv.choosing.asked import NLL, Asked, halves
from tv.choosing.ground import Ground
from tv.choosing.landscape import Landscape, whole
from tv.choosing.shares import Share, share
from tv.choosing.trial import Trial, Values
from tv.errors import InputError
from tv.experiments.cells import Cells
from tv.runtime.compute import Compute
from tv.stats.change import LEAST_FLOOR, said_of
from tv.stats.means import Floats, mean_interval

Half = Literal["first", "second", "all"]
HALVES: tuple[Half, Half] = ("first", "second")
EACH: tuple[Half, Half, Half] = (*HALVES, "all")
#: By set of prompts: which of them are meant.
Seen: TypeAlias = Mapping[str, NDArray[np.bool_]]
#: The level of an interval of one standard error to each side.
_ONE_ERROR = 0.6827


@dataclass(frozen=True)
class Candidate:
    """One point of a method: how far it went, and every prompt's values there."""

    setting: float  # the trade-off, λ, density …
    values: Mapping[Half, Values]  # by the half that the point was made with: the same for all where none was
    scales: Mapping[Half, Floats]  # (units,); empty where it is no scaling of units


class CrossFit:
    """One base and one T under two sets of prompts: `keep`, where T gained, and `restore`, where it did damage.

    Raises InputError where there is no gain or no damage, on all prompts or on one half of them.
    """

    def __init__(self, stands: Ground, sets: Mapping[str, Asked], cells: Cells, seed: int, compute: Compute) -> None:
        self.stands, self.sets, self.seed, self.compute = stands, sets, seed, compute
        (self.vector,) = stands.vectors
        self.field = Landscape(stands.model, stands.vectors, stands.division)
        self.energy: Floats = self.field.energy[0]
        key = {"choice": "repair", **stands.key}
        self._trial = Trial(stands.model, sets, cells, key)
        #: What a gradient can follow, in place of a metric that has none.
        self.followed = {name: one if one.smooth else replace(one, metric=NLL) for name, one in sets.items()}
        self._followed = Trial(stands.model, self.followed, cells, key)
        self._units = [unit.label for unit in stands.division.units]
        self.none, self.full = self.at_scales(self.even(0.0)), self.at_scales(self.even(1.0))
        self.gain: Floats = self.full["keep"] - self.none["keep"]
        self.damage: Floats = self.none["restore"] - self.full["restore"]
        self.told = self._told_of_both()
        first = {
            "keep": halves(sets["keep"], self.gain, seed),
            "restore": halves(sets["restore"], self.damage, seed),
        }
        self.seen: dict[Half, Seen] = {
            "first": first,
            "second": {name: ~half for name, half in first.items()},
            "all": {name: np.ones(len(half), bool) for name, half in first.items()},
        }
        self._require_in_halves()

    def even(self, scale: float) -> Floats:
        """One scale for every unit."""
        even: Floats = whole(self.field, [scale])[0].copy()
        return even

    def at_scales(self, scales: Floats, followed: bool = False) -> Values:
        """Every prompt's values at these scales of the units; `followed`: of what a gradient follows."""
        place = {"units": self._units, "scales": [round(float(scale), 9) for scale in scales]}
        trial = self._followed if followed else self._trial
        return trial.at(place, lambda: self.field.at(np.asarray(place["scales"])))

    def placed(self, name: str, setting: float, put: Callable[[], AbstractContextManager[object]]) -> Candidate:
        """The point at which `put` places the model: no half has a part in it."""
        values = self._trial.at({name: setting}, put)
        return Candidate(setting, dict.fromkeys(EACH, values), {})

    def spread(self, setting: float, scales: Floats) -> Candidate:
        """The point of these scales, which no half has chosen."""
        return Candidate(setting, dict.fromkeys(EACH, self.at_scales(scales)), dict.fromkeys(EACH, scales))

    def found(self, place: object, find: Callable[[], Floats]) -> Floats:
        """Numbers that are kept as values are."""
        return self._trial.kept({"units": self._units, "of": place}, find)

    def shares(self, values: Values, seen: Seen) -> tuple[float, float]:
        """(gain kept, damage undone) over these prompts."""
        of_keep, of_restore = seen["keep"], seen["restore"]
        kept = (values["keep"] - self.none["keep"])[of_keep].mean() / self.gain[of_keep].mean()
        undone = (values["restore"] - self.full["restore"])[of_restore].mean() / self.damage[of_restore].mean()
        return float(kept), float(undone)

    def choose(self, candidates: Sequence[Candidate], keep_at_least: float) -> dict[Half, Candidate]:
        """By each half alone, the point that undoes most of those that keep enough of the gain there.

        Enough: one standard error above what is asked, so that other prompts are likely to see it kept too. Where no
        point is, the one that keeps most.

        Source: The one-standard-error rule, L. Breiman et al. (1984), Classification and Regression Trees, 3.4.3.
        """
        return {half: self._best(candidates, half, keep_at_least) for half in EACH}

    def held_out(self, by_half: Mapping[Half, Values]) -> Values:
        """Every prompt's value by the choice of the half that it is not in."""
        return {
            name: np.where(self.seen["first"][name], by_half["second"][name], by_half["first"][name])
            for name in self.sets
        }

    def tested(self, values: Values) -> tuple[Share, Share]:
        """(gain kept, damage undone) with their intervals."""
        kept = share(values["keep"] - self.none["keep"], self.gain, self.sets["keep"].clusters)
        undone = share(values["restore"] - self.full["restore"], self.damage, self.sets["restore"].clusters)
        return kept, undone

    def tell(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        self.compute.tell(stage, done, total)

    def _best(self, candidates: Sequence[Candidate], half: Half, keep_at_least: float) -> Candidate:
        seen = self.seen[half]
        of_keep = seen["keep"]
        clusters = [name for name, chosen in zip(self.sets["keep"].clusters, of_keep, strict=True) if chosen]
        rated = []
        for one in candidates:
            values = one.values[half]
            part = (values["keep"] - self.none["keep"])[of_keep]
            kept = share(part, self.gain[of_keep], clusters, level=_ONE_ERROR)
            low = kept.value if math.isnan(kept.lo) else kept.lo
            enough = low >= keep_at_least
            rated.append((enough, self.shares(values, seen)[1] if enough else low, one))
        return max(rated, key=lambda rating: rating[:2])[2]

    def _told_of_both(self) -> tuple[str, ...]:
        """What is not clear of gain and damage. Raises InputError where there is none of one."""
        told = []
        for name, change, rose in (("keep", self.gain, "gain"), ("restore", self.damage, "damage")):
            asked = self.sets[name]
            found = mean_interval(change, asked.clusters)
            mean, lo, hi = float(found.mean), float(found.lo), float(found.hi)
            size = f"{mean:.3g} {asked.unit} of {asked.words} over {len(change)} prompts"
            size += f", 95 % interval [{lo:.3g}, {hi:.3g}]" if not math.isnan(lo) else ", too few for an interval"
            said = said_of(mean, lo, hi, float(found.p), floor=LEAST_FLOOR, matters=asked.matters)
            if mean <= LEAST_FLOOR or said == "negligible":
                raise InputError(f"--{name}: no {rose}: {size}; there is nothing to {name}")
            if said != "changed":
                told.append(f"these prompts do not show whether there is a {rose}: {size}")
        return tuple(told)

    def _require_in_halves(self) -> None:
        """Raise InputError where one half shows no gain or no damage: shares of it would mean nothing there."""
        for name, change in (("keep", self.gain), ("restore", self.damage)):
            for half in HALVES:
                mean = float(change[self.seen[half][name]].mean())
                if mean <= LEAST_FLOOR:
                    raise InputError(
                        f"--{name}: the {half} half of the prompts shows nothing to {name} ({mean:.3g}); give more "
                        "prompts, or draw other halves with --seed"
                    )
