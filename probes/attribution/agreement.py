"""How far methods agree: each ranking against the exact methods', and against itself on other prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from probes.attribution.effects import Effects, families, in_domains
from probes.attribution.forwards import Floats
from probes.attribution.units import Unit
from probes.store.schemas import SCHEMAS
from tv.stats.ranks import bootstrap_spearman

#: The methods that every method is compared with.
REFERENCES = ("graft", "revert", "mean")
_COLUMNS = [name for name in SCHEMAS["agreement"].names if name != "tuned"]
#: How many random halvings of the prompts the split-half columns average over.
HALVES = 20
#: The share of the units that counts as chosen.
CHOSEN = 0.1


def agreement(
    measured: Iterable[Effects],
    metric: str,
    domains: Mapping[str, str],
    *,
    draws: int,
    seed: int,
    clusters: Mapping[str, str],
) -> pd.DataFrame:
    """Rows of `agreement`, without controls and without granularities that are no ranking.

    `rho lo hi n`: Spearman's rank correlation over units between a method's means and a reference's, with the interval
    of resampled prompts. `split_half`: the method's rank correlation between the means of two random halves of the
    prompts (clusters stay whole). `chosen_here`, `chosen_there`: the summed effect of the largest tenth of the units,
    chosen on one half, on that half and on the other; a choice made of noise loses its effect there. `direction`
    distinguishes methods with two directions.
    """
    ranked: dict[str, list[Effects]] = {}
    for family in families(measured):
        if not family.control and family.units[0].granularity not in ("all", "type"):
            ranked.setdefault(family.units[0].granularity, []).append(family)
    rows: list[dict[str, object]] = []
    for granularity, methods in ranked.items():
        for domain, prompts in in_domains(domains).items():
            labels = {"granularity": granularity, "metric": metric, "domain": domain}
            rows += [labels | row for row in _rows(methods, prompts, clusters, draws, seed)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _rows(
    methods: Sequence[Effects], prompts: set[str], clusters: Mapping[str, str], draws: int, seed: int
) -> Iterator[dict[str, object]]:
    references = {family.method: family for family in methods if family.method in REFERENCES}
    for family in (method.over(prompts) for method in methods):
        if family.method == "synergy":  # no estimate of an effect
            continue
        halves = split_half(family.values.T, [clusters.get(prompt, prompt) for prompt in family.prompts], seed)
        for reference, other in references.items():
            units = sorted(set(family.units) & set(other.units), key=family.units.index)
            both = [prompt for prompt in family.prompts if prompt in other.prompts]
            if reference == family.method or not units or not both:
                continue
            x, y = (_table(side, both, units) for side in (family, other))
            rho, lo, hi, n = bootstrap_spearman(x, y, draws, seed, [clusters.get(prompt, prompt) for prompt in both])
            labels: dict[str, object] = {"method": family.method, "direction": family.direction, "reference": reference}
            yield labels | {"rho": rho, "lo": lo, "hi": hi, "n": n} | halves


def _table(effects: Effects, prompts: Sequence[str], units: Sequence[Unit]) -> Floats:
    """(prompts, units): the values of these, in this order."""
    row, column = (dict(zip(names, range(len(names)), strict=True)) for names in (effects.units, effects.prompts))
    return effects.values[np.ix_([row[unit] for unit in units], [column[prompt] for prompt in prompts])].T


def split_half(values: Floats, clusters: list[str], seed: int) -> dict[str, float]:
    """`split_half chosen_here chosen_there` of (prompts, units), means over random halves; NaN with too few."""
    names, which = np.unique(np.asarray(clusters, str), return_inverse=True)
    halves = []
    generator = np.random.default_rng(seed)
    for _ in range(HALVES if len(names) >= 4 and values.shape[1] >= 3 else 0):
        first = np.isin(which, generator.permutation(len(names))[: len(names) // 2])
        here, there = _mean(values[first]), _mean(values[~first])
        chosen = np.argsort(-np.abs(here))[: max(1, round(CHOSEN * values.shape[1]))]
        constant = np.ptp(here) == 0 or np.ptp(there) == 0
        rho = np.nan if constant else float(spearmanr(here, there).statistic)
        sign = np.sign(here[chosen])
        halves.append((rho, float((here[chosen] * sign).sum()), float((there[chosen] * sign).sum())))
    means = _mean(np.reshape(halves, (-1, 3)))
    return dict(zip(("split_half", "chosen_here", "chosen_there"), means.tolist(), strict=True))


def _mean(values: Floats) -> Floats:
    """The mean of every column's values that are there; NaN where there is none."""
    there = (~np.isnan(values)).sum(0)
    return np.divide(np.nansum(values, 0), there, out=np.full(there.shape, np.nan), where=there > 0)
