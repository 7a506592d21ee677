"""How far methods agree: every one's ranking against the exact ones', and each against itself on other prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from probes.attribute.effects import wide
from probes.attribute.forwards import Floats
from probes.schemas import ALL_DOMAINS, SCHEMAS
from tv.stats import bootstrap_spearman

#: What every method is held against.
REFERENCES = ("graft", "revert", "mean")
_COLUMNS = [name for name in SCHEMAS["agreement"].names if name != "tuned"]
#: Random halves of the prompts that the split-half columns are the mean over.
HALVES = 20
#: The share of the units that counts as chosen.
CHOSEN = 0.1


def agreement(
    effects: pd.DataFrame, domains: Mapping[str, str], *, draws: int, seed: int, clusters: Mapping[str, str]
) -> pd.DataFrame:
    """Rows of `agreement`, from per-prompt effects of one metric, controls left out.

    `rho lo hi n`: Spearman's rank correlation over units between a method's means and a reference's, with the interval
    of resampled prompts. `split_half`: the method's own rank correlation between the means of two random halves of the
    prompts (clusters stay whole). `chosen_here`, `chosen_there`: the summed effect of the largest tenth of the units,
    chosen on one half: on that half, and on the other; a choice made of noise loses there. Methods with two directions
    are told apart by `direction`.
    """
    own = effects[effects.control == ""]
    rows: list[dict[str, object]] = []
    by_domain = {ALL_DOMAINS: list(domains)}
    if len(names := sorted(set(domains.values()))) > 1:
        by_domain |= {name: [prompt for prompt in domains if domains[prompt] == name] for name in names}
    for (granularity, metric), family in own.groupby(["granularity", "metric"], sort=False):
        tables = {
            (str(method), str(direction)): wide(part)
            for (method, direction), part in family.groupby(["method", "direction"], sort=False)
        }
        for domain, prompts in by_domain.items():
            labels = {"granularity": granularity, "metric": metric, "domain": domain}
            rows += [labels | row for row in _rows(tables, prompts, clusters, draws, seed)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _rows(
    tables: Mapping[tuple[str, str], pd.DataFrame],
    prompts: list[str],
    clusters: Mapping[str, str],
    draws: int,
    seed: int,
) -> Iterator[dict[str, object]]:
    references = {method: table for (method, _), table in tables.items() if method in REFERENCES}
    for (method, direction), table in tables.items():
        if method == "synergy":  # no estimate of an effect
            continue
        at = table.index[table.index.isin(prompts)]
        halves = split_half(table.loc[at].to_numpy(np.float64), [clusters.get(p, p) for p in at], seed)
        for reference, other in references.items():
            shared = table.columns.intersection(other.columns, sort=False)
            both = at.intersection(other.index)
            if reference == method or not len(shared) or not len(both):
                continue
            x, y = (side.loc[both, shared].to_numpy(np.float64) for side in (table, other))
            rho, lo, hi, n = bootstrap_spearman(x, y, draws, seed)
            labels: dict[str, object] = {"method": method, "direction": direction, "reference": reference}
            yield labels | {"rho": rho, "lo": lo, "hi": hi, "n": n} | halves


def split_half(values: Floats, clusters: list[str], seed: int) -> dict[str, float]:
    """`split_half chosen_here chosen_there` of (prompts, units), means over random halves; NaN with too few."""
    names, which = np.unique(np.asarray(clusters, str), return_inverse=True)
    found = []
    generator = np.random.default_rng(seed)
    for _ in range(HALVES if len(names) >= 4 and values.shape[1] >= 3 else 0):
        first = np.isin(which, generator.permutation(len(names))[: len(names) // 2])
        here, there = np.nanmean(values[first], 0), np.nanmean(values[~first], 0)
        chosen = np.argsort(-np.abs(here))[: max(1, round(CHOSEN * values.shape[1]))]
        constant = np.ptp(here) == 0 or np.ptp(there) == 0
        rho = np.nan if constant else float(spearmanr(here, there).statistic)
        sign = np.sign(here[chosen])
        found.append((rho, float((here[chosen] * sign).sum()), float((there[chosen] * sign).sum())))
    means = np.nanmean(found, 0) if found and not np.isnan(found).all() else np.full(3, np.nan)
    return dict(zip(("split_half", "chosen_here", "chosen_there"), means.tolist(), strict=True))
