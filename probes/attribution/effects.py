"""The effects of a method as rows, and their means over prompts with intervals."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from probes.attribution.forwards import Floats
from probes.attribution.halves import held_out
from probes.attribution.units import Unit
from probes.store.schemas import ALL_DOMAINS
from tv.stats.change import LEAST_FLOOR
from tv.stats.families import benjamini_hochberg
from tv.stats.means import mean_interval

#: The columns that name a unit in a table.
UNIT = ["granularity", "layer", "component", "module", "head", "expert", "neuron"]

#: How often, at most, intervals that hold at once may all together leave out a true value.
ERROR = 0.05
FORWARD, BACKWARD, BOTH = "base→tuned", "tuned→base", "both"


@dataclass(frozen=True)
class Effects:
    """How much each unit moves the metric of each prompt, towards the tuned model.

    `direction` says which model the measurement starts from and which it moves to. `control` names the vector used in
    place of the tuning vector, and is "" for the tuning vector. `change` is what the values are shares of, where they
    are: along a path that ends where it began, a unit still has a share, of nothing. Where not all units were measured,
    `sampled` are those that were drawn, and `left_out` says how many were not: see `probes.attribution.chosen`.
    """

    method: str
    direction: str
    units: tuple[Unit, ...]
    prompts: tuple[str, ...]
    values: Floats  # (units, prompts), NaN where a prompt has no such metric
    control: str = ""
    change: Floats | None = None  # (prompts,)
    sampled: frozenset[Unit] = frozenset()
    left_out: int = 0

    def frame(self, metric: str) -> pd.DataFrame:
        """A row per unit × prompt that has the metric: UNIT, `prompt_id method direction control metric effect`."""
        n = len(self.prompts)
        columns = {name: np.repeat(values, n) for name, values in _columns(self.units).items()}
        labels = self._labels(metric)
        rows = pd.DataFrame({**columns, "prompt_id": list(self.prompts) * len(self.units), **labels})
        return rows.assign(effect=self.values.ravel()).dropna(subset="effect")

    def means(self, metric: str, clusters: Sequence[str], *, floor: float, family: int, seed: int) -> pd.DataFrame:
        """A row per unit: UNIT, `method direction control metric` and the estimates of the table `effects`.

        Args:
            metric: The metric's name.
            clusters: The cluster of each prompt.
            floor: The size of an effect that rounding alone can make.
            family: How many effects `lo_all` and `hi_all` cover at once.
            seed: Of the halvings of `held_out`.
        """
        mean, lo, hi, p, n = mean_interval(self.values.T, clusters)
        at_once = mean_interval(self.values.T, clusters, 1 - ERROR / family)
        reached = least_p(n) <= ERROR / family
        # The units that are left out count as tests that found nothing.
        q = benjamini_hochberg(np.append(p, np.ones(self.left_out)))[: len(p)]
        estimates = {"effect": mean, "lo": lo, "hi": hi, "p": p, "q": q, "n": n}
        ends = {f"{end}_all": np.where(reached, getattr(at_once, end), np.nan) for end in ("lo", "hi")}
        others = {"held_out": held_out(self.values, clusters, seed), "within_noise": np.abs(mean) <= floor}
        chosen = [self._chosen(unit) for unit in self.units]
        found = {**_columns(self.units), **self._labels(metric), **estimates, **ends, **others}
        return pd.DataFrame({**found, "chosen": chosen})

    def over(self, prompts: Collection[str], floor: float = LEAST_FLOOR) -> Effects:
        """The effects on those of its prompts that are in `prompts`; NaN where they are shares of no change there."""
        at = [i for i, prompt in enumerate(self.prompts) if prompt in prompts]
        names, values = tuple(self.prompts[i] for i in at), self.values[:, at]
        if self.change is None:
            return replace(self, prompts=names, values=values)
        change = self.change[at]
        return replace(self, prompts=names, values=values if changed(change, floor) else np.nan * values, change=change)

    def _chosen(self, unit: Unit) -> str:
        return "all" if not self.left_out else "sampled" if unit in self.sampled else "leading"

    def _labels(self, metric: str) -> dict[str, str]:
        return {"method": self.method, "direction": self.direction, "control": self.control, "metric": metric}


def changed(change: Floats, floor: float) -> bool:
    """Whether the changes of these prompts are larger on average than what rounding alone can make."""
    return bool(np.abs(change).sum() > floor * len(change))


def floor_of(floors: Mapping[str, float] | None, domain: str) -> float:
    """The size of a mean change that rounding alone can make in a domain, where it was measured; else the least."""
    return (floors or {}).get(domain, LEAST_FLOOR)


def least_p(n: ArrayLike) -> Floats:
    """The least p that n prompts, or clusters, support: of all 2ⁿ signs that they could have had, one each way.

    A formula gives smaller ones, out of tails that so few prompts do not show.

    Examples:
        >>> float(least_p(8))
        0.0078125
    """
    return 2.0 ** (1 - np.asarray(n, np.float64))


def families(measured: Iterable[Effects]) -> list[Effects]:
    """Effects split into families that are compared: one method, direction, control and granularity each.

    Prompts without a value are left out; the others are sorted by id.
    """
    parts = []
    for effects in measured:
        order = [i for i in np.argsort(effects.prompts) if not np.isnan(effects.values[:, i]).all()]
        for granularity in dict.fromkeys(unit.granularity for unit in effects.units):
            which = [i for i, unit in enumerate(effects.units) if unit.granularity == granularity]
            units, prompts = tuple(effects.units[i] for i in which), tuple(effects.prompts[i] for i in order)
            change = None if effects.change is None else effects.change[order]
            values = effects.values[np.ix_(which, order)]
            parts.append(replace(effects, units=units, prompts=prompts, values=values, change=change))
    return parts


def in_domains(domains: Mapping[str, str]) -> dict[str, set[str]]:
    """The prompts of all domains together, and of each where there are several."""
    names = sorted(set(domains.values()))
    each = {name: {prompt for prompt, domain in domains.items() if domain == name} for name in names}
    return {ALL_DOMAINS: set(domains), **(each if len(names) > 1 else {})}


def summarise(
    measured: Iterable[Effects],
    metric: str,
    domains: Mapping[str, str],
    *,
    seed: int,
    clusters: Mapping[str, str] | None = None,
    floors: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Each unit's mean over prompts with its 95 % interval, over all prompts and by domain: the table `effects`.

    Args:
        measured: The effects of all methods.
        metric: The metric's name.
        domains: Each prompt's domain.
        seed: Of the halvings of `held_out`.
        clusters: Each prompt's cluster, by its id; without one, a prompt is its own.
        floors: The noise floor of the metric in each domain; `LEAST_FLOOR` where none was measured.

    Returns:
        A row per unit, method, direction, control and domain. q is Benjamini and Hochberg's within one method,
        direction, control and granularity in one domain. `lo_all` and `hi_all` hold for all units and methods of the
        granularity at once, those among them that were not measured.
    """
    every = families(measured)
    rows = []
    for domain, prompts in in_domains(domains).items():
        floor = floor_of(floors, domain)
        for effects in (family.over(prompts, floor) for family in every):
            names = [(clusters or {}).get(prompt, prompt) for prompt in effects.prompts]
            if names:
                at_once = sum(len(other.units) + other.left_out for other in every if _beside(other, effects))
                means = effects.means(metric, names, floor=floor, family=at_once, seed=seed)
                rows.append(means.assign(domain=domain))
    return pd.concat(rows, ignore_index=True)


def _beside(other: Effects, effects: Effects) -> bool:
    """Whether a reader finds both in one paragraph: measured effects of one granularity, no sums of two methods."""
    alike = other.units[0].granularity == effects.units[0].granularity and other.control == effects.control
    return alike and (other.direction != BOTH or effects.direction == BOTH)


def focus(effects: pd.DataFrame) -> str:
    """The domain with the largest effect of any unit, which a reader wants to see first; all of them where none has.

    Units of weights have a say before directions and features: pushed hard, those move whatever is there.
    """
    known = effects.dropna(subset="effect")
    if "granularity" in known and len(weights := known[~known.granularity.isin(("direction", "feature"))]):
        known = weights
    return str(known.domain.loc[known.effect.abs().idxmax()]) if len(known) else ALL_DOMAINS


def units_in(table: pd.DataFrame) -> list[Unit]:
    """The units that rows are about, in order."""
    rows = table[UNIT].astype({name: int for name in ("layer", "head", "expert", "neuron")})
    return [Unit(**row) for row in rows.to_dict("records")]


def _columns(units: Sequence[Unit]) -> dict[str, list[Any]]:
    return {name: [getattr(unit, name) for unit in units] for name in UNIT}


def both_ways(measured: Sequence[Effects]) -> list[Effects]:
    """`mean` and `synergy` of graft and revert where both were measured: (graft + revert)/2 and revert − graft.

    A unit whose effect needs other units has a positive synergy (times the sign of its effect).
    """
    by_method = {
        (effects.method, effects.units[:1]): effects for effects in measured if not effects.control and effects.units
    }
    pairs = []
    for (method, first), graft in by_method.items():
        revert = by_method.get(("revert", first))
        if method == "graft" and revert is not None and revert.units == graft.units:
            both = {"mean": (graft.values + revert.values) / 2, "synergy": revert.values - graft.values}
            pairs += [replace(graft, method=name, direction=BOTH, values=values) for name, values in both.items()]
    return pairs
