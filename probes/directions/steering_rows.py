"""What steering found, as effects and as rows of tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.attribution.effects import Effects, floor_of, in_domains
from probes.attribution.forwards import Floats
from probes.attribution.units import Unit
from probes.attribution.work import Work
from probes.directions.choosing import Found, Wanted
from probes.directions.placebos import PLACEBOS
from probes.directions.shares import shares
from probes.directions.states import Place
from tv.stats.means import mean_interval

#: A direction carries most of a change where the interval of its share is further than this above placebos' mean.
MOST = 0.5
#: The `layer` of what the other half of the prompts chose.
CHOSEN = -1
#: With fewer placebos of each kind, none can be told from them.
FEWEST = 20
_NUMBERS = ("effect", "lo", "hi", "n", "share", "share_lo", "share_hi", "kl", "kl_lo", "kl_hi")


def effects_of(work: Work, wanted: Wanted, places: Sequence[Place], found: Found) -> Iterator[Effects]:
    """Of every layer, and of the chosen one beside the first draw of each placebo."""
    units = tuple(Unit("direction", layer, wanted.site) for _, layer in places)
    chosen = Unit("direction", CHOSEN, wanted.site)
    at = {(row["control"], row["draw"]): i for i, row in enumerate(found.labels)}
    whole = np.concatenate([found.effects, found.at_chosen[[at["", -1]]]])
    yield Effects("direction", found.way, (*units, chosen), work.prompts, whole)
    for kind in PLACEBOS:
        yield Effects("direction", found.way, (chosen,), work.prompts, found.at_chosen[[at[kind, 0]]], kind)


def steering_rows(
    work: Work, places: Sequence[Place], found: Found, change: Floats, clusters: Sequence[str]
) -> pd.DataFrame:
    """The table `direction_effects`: every layer, dose and placebo, in every domain."""
    labels = [{"layer": layer, "control": "", "draw": -1, "dose": 1.0} for _, layer in places]
    labels += [{"layer": CHOSEN, **row} for row in found.labels]
    effects, kl = np.concatenate([found.effects, found.at_chosen]), np.concatenate([found.kl, found.kl_at_chosen])
    parts = []
    for domain, prompts in in_domains(work.domains).items():
        own = np.array([prompt in prompts for prompt in work.prompts]) & np.isfinite(change)
        names = [name for name, inside in zip(clusters, own, strict=True) if inside]
        if not names:
            continue
        mean, lo, hi, _, n = mean_interval(effects[:, own].T, names)
        of_change = shares(effects[:, own].T, change[own], names, floor_of(work.floors, domain))
        kl_mean, kl_lo, kl_hi, *_ = mean_interval(kl[:, own].T, names)
        numbers = {"effect": mean, "lo": lo, "hi": hi, "n": n, "kl": kl_mean, "kl_lo": kl_lo, "kl_hi": kl_hi}
        shown = dict(zip(("share", "share_lo", "share_hi"), of_change, strict=True))
        parts.append(pd.DataFrame(labels).assign(**numbers, **shown, domain=domain, direction=found.way))
    return pd.concat(parts, ignore_index=True)


def one_vector_rows(rows: pd.DataFrame, found: Found) -> pd.DataFrame:
    """The table `one_vector`: in every domain, the chosen direction beside its placebos, and the KL in the others."""
    answers = []
    for domain, own in rows[rows.layer == CHOSEN].groupby("domain", sort=False):
        (real,) = own[(own.control == "") & own.dose.isna()].to_dict("records")
        answer: dict[str, Any] = {"direction": found.way, "domain": domain, **{name: real[name] for name in _NUMBERS}}
        for half, steer in enumerate(found.chosen):
            answer |= {f"layer_{half}": steer.place[1], f"dose_{half}": found.doses[half]}
        for kind in PLACEBOS:
            drawn = own.effect[own.control == kind].abs().to_numpy()
            answer |= {
                f"{kind}_most": drawn.max(),
                f"{kind}_p": (1 + (drawn >= abs(real["effect"])).sum()) / (1 + len(drawn)),
                "draws": len(drawn),
            }
        sizes = own[own.control != ""].groupby("control").effect.apply(lambda effects: effects.abs().mean())
        answer["placebo_share"] = abs(real["share"] / real["effect"]) * sizes.max() if real["effect"] else np.nan
        answers.append(answer | {"answer": _answer(answer)})
    return pd.DataFrame(answers)


def _answer(row: Mapping[str, Any]) -> str:
    """What the table's column `answer` says."""
    if np.isnan(row["share_lo"]):
        return "cannot tell"
    if max(row["random_p"], row["shuffled_p"]) >= 0.05 or row["share_lo"] <= 0:
        return "no better than placebos" if row["draws"] >= FEWEST else "cannot tell"
    return "most" if row["share_lo"] - row["placebo_share"] > MOST else "part"
