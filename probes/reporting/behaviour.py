"""How behaviour moved: both models' means, the paired change, its test, and what may be said of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from probes.reporting.words import METRICS, is_share, smallest_that_matters
from tv.prompts.metric import LOGGED
from tv.stats.change import LEAST_FLOOR, said_of
from tv.stats.families import holm
from tv.stats.means import Floats, mean_interval
from tv.stats.proportions import mcnemar_p, share_change, share_interval

#: A metric that repeats what another says better, where both are measured.
REPEATS = {"target_nll": "target_nll_per_token"}
_SHOWN = ("base", "tuned", "change")
_COMPARED = [
    *("domain", "metric", "n", "units"),
    *(f"{name}{end}" for name in _SHOWN for end in ("", "_lo", "_hi")),
    *("p", "p_holm", "floor", "size", "said", "gained", "lost"),
]

#: (domain, metric) → the size of a mean change that rounding alone can make.
Floors = Mapping[tuple[str, str], float]


def compare_behaviour(values: pd.DataFrame, tuned: str, prompts: pd.DataFrame, floors: Floors) -> pd.DataFrame:
    """Per domain and metric: both models' means and the paired change, each with its 95 % interval.

    `said` is what may be said of the change (`tv.stats.change.said_of`): by `p_holm`, which is p corrected over all
    rows of which something may be said, by the noise floor, and by the metric's smallest change that matters. `units`
    counts prompts, or clusters of them, and `size` is the mean size of a prompt's change. `gained` and `lost` count the
    prompts that gained or lost a metric of 0 and 1. A metric that only the tuned model has (kl) has no base and no
    change. Of one that repeats another (the sum over tokens; token accuracy where each answer is one token) nothing
    more is said.

    Args:
        values: `prompt_id model metric value`, of the base and of the tuned model.
        tuned: The tuned model's name.
        prompts: `prompt_id domain cluster`; a prompt without a cluster is its own.
        floors: The noise floor by domain and metric; `LEAST_FLOOR` where there is none.
    """
    known = prompts.set_index(prompts.prompt_id.astype(str))
    domain_of = known.domain.fillna("").astype(str).to_dict()
    cluster_of = known.cluster.where(known.cluster.notna(), known.prompt_id).astype(str).to_dict()
    rows: list[dict[str, Any]] = []
    domains = values.prompt_id.astype(str).map(domain_of).fillna("")
    for (domain, metric), part in values.groupby([domains, "metric"], sort=False):
        wide = part.pivot(index="prompt_id", columns="model", values="value").reindex(columns=["base", tuned])
        clusters = [cluster_of.get(str(prompt), str(prompt)) for prompt in wide.index]
        pair = wide["base"].to_numpy(np.float64), wide[tuned].to_numpy(np.float64)
        floor = floors.get((str(domain), str(metric)), LEAST_FLOOR)
        rows.append({"domain": domain, "metric": metric, "floor": floor, **_compared(*pair, clusters, str(metric))})
    table = _sorted(pd.DataFrame(rows, columns=_COMPARED))
    repeats = table.metric.map(REPEATS).isin(table.metric) | table.duplicated(["domain", "base", "tuned", "p"])
    table["p_holm"] = holm(table.p.astype(float).mask(repeats))
    table["said"] = [_said(row) for row in table.assign(change=table.change.mask(repeats)).to_dict("records")]
    return table


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    """The most important domain first: by the share of answers that turned, then by how far the NLL per token moved.

    A sum over tokens would rank by how long answers are.
    """
    ranking = next((metric for metric in ("target_nll_per_token", "target_nll") if (table.metric == metric).any()), "")
    moved = table[table.metric == ranking].set_index("domain").change.abs()
    answers = table[table.metric == "exact_match"].set_index("domain")
    turned = (answers.gained + answers.lost) / answers.n
    order = {name: i for i, name in enumerate(METRICS)}
    keys = {
        "_turned": -table.domain.map(turned).astype(float).fillna(0.0),
        "_moved": -table.domain.map(moved).astype(float),
        "_metric": table.metric.map(order),
    }
    return (
        table.assign(**keys).sort_values(["_turned", "_moved", "domain", "_metric"])[_COMPARED].reset_index(drop=True)
    )


def _compared(base: Floats, tuned: Floats, clusters: list[str], metric: str) -> dict[str, Any]:
    """Means, change, intervals and p of one metric on the prompts of one domain."""
    known = ~np.isnan(tuned)
    found: dict[str, Any] = {
        "n": int(known.sum()),
        "units": len({name for name, there in zip(clusters, known, strict=True) if there}),
    }
    if (is_share(metric) or metric.startswith(LOGGED)) and np.isin(
        [*base[~np.isnan(base)], *tuned[known]], (0, 1)
    ).all():
        shares = share_interval(base, clusters), share_interval(tuned, clusters), share_change(base, tuned, clusters)
        ends = dict(zip(_SHOWN, shares, strict=True))
        p = mcnemar_p(base, tuned, clusters) if not np.isnan(ends["change"][1]) else np.nan
        found |= {"gained": int((tuned > base).sum()), "lost": int((tuned < base).sum())}
    else:
        means = mean_interval(np.stack([base, tuned, tuned - base], axis=1), clusters)
        ends = dict(zip(_SHOWN, zip(means.mean, means.lo, means.hi, strict=True), strict=True))
        p = means.p[-1]
    for name, (mean, lo, hi) in ends.items():
        found |= {name: mean, f"{name}_lo": lo, f"{name}_hi": hi}
    gaps = np.abs(tuned - base)[known & ~np.isnan(base)]
    return found | {"p": p, "size": gaps.mean() if len(gaps) else np.nan}


def _said(row: Mapping[Any, Any]) -> str:
    """What may be said; empty where there is no change to speak of."""
    if pd.isna(row["change"]):
        return ""
    return said_of(
        row["change"],
        row["change_lo"],
        row["change_hi"],
        row["p_holm"],
        floor=row["floor"],
        matters=smallest_that_matters(row["metric"]),
        # Of n prompts that change by this in either direction, the mean reaches the size over √n.
        still=row["size"] <= row["floor"] * np.sqrt(row["n"]),
    )
