"""The effects of a method as rows, and their means over prompts with intervals."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from probes.attribution.forwards import Floats
from probes.attribution.units import Unit
from probes.store.schemas import ALL_DOMAINS
from tv.stats.families import benjamini_hochberg
from tv.stats.resampling import bootstrap_mean, wilcoxon_p

#: The columns that name a unit in a table.
UNIT = ["granularity", "layer", "component", "module", "head", "expert", "neuron"]

FORWARD, BACKWARD = "base→tuned", "tuned→base"


@dataclass(frozen=True)
class Effects:
    """How much each unit moves the metric of each prompt, towards the tuned model.

    `direction` says which model the measurement starts from and which it moves to. `control` names the vector used in
    place of the tuning vector, and is "" for the tuning vector.
    """

    method: str
    direction: str
    units: tuple[Unit, ...]
    prompts: tuple[str, ...]
    values: Floats  # (units, prompts), NaN where a prompt has no such metric
    control: str = ""

    def frame(self, metric: str) -> pd.DataFrame:
        """A row per unit × prompt that has the metric: UNIT, `prompt_id method direction control metric effect`."""
        n = len(self.prompts)
        columns = {name: np.repeat(values, n) for name, values in _columns(self.units).items()}
        labels = self._labels(metric)
        rows = pd.DataFrame({**columns, "prompt_id": list(self.prompts) * len(self.units), **labels})
        return rows.assign(effect=self.values.ravel()).dropna(subset="effect")

    def means(self, metric: str, clusters: Sequence[str], draws: int, seed: int) -> pd.DataFrame:
        """A row per unit: UNIT, `method direction control metric effect lo hi p q`. `clusters` are the prompts'."""
        table = self.values.T
        mean, lo, hi = bootstrap_mean(table, draws=draws, seed=seed, clusters=clusters)
        alone = len(set(clusters)) == len(clusters)
        p = wilcoxon_p(table if alone else pd.DataFrame(table).groupby(list(clusters)).mean().to_numpy())
        estimates = {"effect": mean, "lo": lo, "hi": hi, "p": p, "q": benjamini_hochberg(p)}
        return pd.DataFrame({**_columns(self.units), **self._labels(metric), **estimates})

    def over(self, prompts: Collection[str]) -> Effects:
        """The effects on those of its prompts that are in `prompts`."""
        at = [i for i, prompt in enumerate(self.prompts) if prompt in prompts]
        return replace(self, prompts=tuple(self.prompts[i] for i in at), values=self.values[:, at])

    def _labels(self, metric: str) -> dict[str, str]:
        return {"method": self.method, "direction": self.direction, "control": self.control, "metric": metric}


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
            parts.append(replace(effects, units=units, prompts=prompts, values=effects.values[np.ix_(which, order)]))
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
    draws: int,
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Each unit's mean over prompts with its 95 % bootstrap interval, over all prompts and by domain.

    `domains` and `clusters` give each prompt's domain and cluster: prompts of one cluster (a template) are drawn
    together. p is a signed-rank test over prompts (over the means of clusters), q its Benjamini–Hochberg value within
    the family: one method, direction, control and granularity in one domain.
    """
    every = families(measured)
    rows = []
    for domain, prompts in in_domains(domains).items():
        for effects in (family.over(prompts) for family in every):
            names = [(clusters or {}).get(prompt, prompt) for prompt in effects.prompts]
            if names:
                rows.append(effects.means(metric, names, draws, seed).assign(domain=domain))
    return pd.concat(rows, ignore_index=True)


def focus(effects: pd.DataFrame) -> str:
    """The domain with the largest effect of any unit, which a reader wants to see first."""
    return str(effects.domain.loc[effects.effect.abs().idxmax()])


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
            pairs += [replace(graft, method=name, direction="both", values=values) for name, values in both.items()]
    return pairs
