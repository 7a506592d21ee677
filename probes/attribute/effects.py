"""What a method found, as rows; and their means over prompts, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from probes.attribute.forwards import Floats
from probes.attribute.units import Unit
from probes.schemas import ALL_DOMAINS
from tv.stats import benjamini_hochberg, bootstrap_mean, wilcoxon_p

#: What names a unit in a table.
UNIT = ["granularity", "layer", "component", "module", "head", "expert", "neuron"]
#: What names a family of effects that are compared with each other.
FAMILY = ["method", "direction", "control", "metric"]

FORWARD, BACKWARD = "base→tuned", "tuned→base"


@dataclass(frozen=True)
class Effects:
    """How much each unit moves the metric of each prompt, towards the tuned model.

    `direction` is where the measurement starts and where it goes. `control` names the tuning vector that stood in for
    the real one, and is "" for the real one.
    """

    method: str
    direction: str
    units: tuple[Unit, ...]
    prompts: tuple[str, ...]
    values: Floats  # (units, prompts), NaN where a prompt has no such metric
    control: str = ""

    def frame(self, metric: str) -> pd.DataFrame:
        """A row per unit × prompt that has the metric: UNIT, FAMILY, `prompt_id effect`."""
        n = len(self.prompts)
        columns = {name: np.repeat([getattr(unit, name) for unit in self.units], n) for name in UNIT}
        labels = {"method": self.method, "direction": self.direction, "control": self.control, "metric": metric}
        found = pd.DataFrame({**columns, "prompt_id": list(self.prompts) * len(self.units), **labels})
        return found.assign(effect=self.values.ravel()).dropna(subset="effect")


def summarise(
    effects: pd.DataFrame,
    domains: Mapping[str, str],
    *,
    draws: int,
    seed: int,
    clusters: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Each unit's mean over prompts with its 95 % bootstrap interval, over all prompts and by domain.

    `domains` names each prompt's, `clusters` what it must not be counted apart from: prompts of one template are drawn
    together. p is a signed-rank test over prompts (over the means of clusters), q its Benjamini–Hochberg value within
    the family: one method, direction, control and granularity in one domain.
    """
    by_domain = effects.assign(domain=effects.prompt_id.map(domains))
    frames = [by_domain.assign(domain=ALL_DOMAINS)] + [by_domain] * (by_domain.domain.nunique() > 1)
    by = [*FAMILY, "granularity", "domain"]
    families = pd.concat(frames).groupby(by, sort=False)
    rows = [
        _family(family, draws, seed, clusters or {}).assign(**dict(zip(by, key, strict=True)))
        for key, family in families
    ]
    return pd.concat(rows, ignore_index=True)


def focus(effects: pd.DataFrame) -> str:
    """The domain in which some unit's effect is largest: the one a reader wants to see first."""
    return str(effects.domain.loc[effects.effect.abs().idxmax()])


def units_in(table: pd.DataFrame) -> list[Unit]:
    """The units that rows are about, in order."""
    rows = table[UNIT].astype({name: int for name in ("layer", "head", "expert", "neuron")})
    return [Unit(**row) for row in rows.to_dict("records")]


def wide(effects: pd.DataFrame) -> pd.DataFrame:
    """One family as (prompts, units), prompts sorted by id and units in the order of their rows."""
    unit = [name for name in UNIT if name != "granularity"]
    order = pd.MultiIndex.from_frame(effects[unit].drop_duplicates())
    return effects.pivot(index="prompt_id", columns=unit, values="effect").reindex(columns=order)


def _family(family: pd.DataFrame, draws: int, seed: int, clusters: Mapping[str, str]) -> pd.DataFrame:
    table = wide(family)
    names = [clusters.get(str(prompt), str(prompt)) for prompt in table.index]
    found = table.to_numpy(np.float64)
    mean, lo, hi = bootstrap_mean(found, draws=draws, seed=seed, clusters=names)
    p = wilcoxon_p(table.groupby(names).mean().to_numpy(np.float64))
    units = {name: table.columns.get_level_values(name) for name in table.columns.names}
    return pd.DataFrame({**units, "effect": mean, "lo": lo, "hi": hi, "p": p, "q": benjamini_hochberg(p)})


def both_ways(found: Sequence[Effects]) -> list[Effects]:
    """`mean` and `synergy` of graft and revert where both are there: (graft + revert)/2 and revert − graft.

    A unit whose effect needs others to be there has a positive synergy (times the sign of its effect).
    """
    by_method = {(own.method, own.units[:1]): own for own in found if not own.control and own.units}
    pairs = []
    for (method, first), graft in by_method.items():
        revert = by_method.get(("revert", first))
        if method == "graft" and revert is not None and revert.units == graft.units:
            same = {**asdict(graft), "units": graft.units, "direction": "both"}
            pairs.append(Effects(**{**same, "method": "mean", "values": (graft.values + revert.values) / 2}))
            pairs.append(Effects(**{**same, "method": "synergy", "values": revert.values - graft.values}))
    return pairs
