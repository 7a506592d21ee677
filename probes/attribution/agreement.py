"""How far methods agree: each ranking against the exact methods', and against itself on other prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from probes.attribution.effects import Effects, families, floor_of, in_domains
from probes.attribution.forwards import Floats
from probes.attribution.halves import halves, means
from probes.attribution.units import Unit
from probes.store.schemas import SCHEMAS
from tv.stats.ranks import bootstrap_spearman

#: The methods that every method is compared with.
REFERENCES = ("graft", "revert", "mean")
_COLUMNS = [name for name in SCHEMAS["agreement"].names if name != "tuned"]
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
    floors: Mapping[str, float] | None = None,
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
            inside = [family.over(prompts, floor_of(floors, domain)) for family in methods]
            rows += [labels | row for row in _rows(inside, clusters, draws, seed)]
    return pd.DataFrame(rows, columns=_COLUMNS)


def sampled(
    measured: Iterable[Effects],
    metric: str,
    domains: Mapping[str, str],
    *,
    draws: int,
    seed: int,
    clusters: Mapping[str, str],
    floors: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Rows of `sampled`: how path ranks the units that were drawn from those that it does not lead with.

    `rho lo hi n`: Spearman's rank correlation between path's means and an exact method's over the drawn units.
    `largest_sampled` beside `smallest_leading`: sizes of exact effects. A drawn unit that has more than a leading one
    says that there may be others like it among the `left_out`.
    """
    found: list[dict[str, object]] = []
    every = [family for family in families(measured) if not family.control]
    for family in every:
        paths = [other for other in every if other.method == "path" and set(family.sampled) <= set(other.units)]
        if not family.left_out or not paths or family.method == "synergy":
            continue
        drawn, led = ([unit for unit in family.units if (unit in family.sampled) == which] for which in (True, False))
        for domain, prompts in in_domains(domains).items():
            path, exact = (each.over(prompts, floor_of(floors, domain)) for each in (paths[0], family))
            both = [prompt for prompt in exact.prompts if prompt in path.prompts]
            if not both:
                continue
            x, y = (_table(side, both, drawn) for side in (path, exact))
            rho, lo, hi, n = bootstrap_spearman(x, y, draws, seed, [clusters.get(prompt, prompt) for prompt in both])
            sizes = (np.abs(_table(exact, both, units).mean(0)) for units in (drawn, led))
            found.append(
                {
                    **{"granularity": family.units[0].granularity, "method": family.method},
                    **{"direction": family.direction, "domain": domain, "metric": metric},
                    **{"rho": rho, "lo": lo, "hi": hi, "n": n, "n_leading": len(led), "left_out": family.left_out},
                    **{"largest_sampled": next(sizes).max(), "smallest_leading": next(sizes).min()},
                }
            )
    return pd.DataFrame(found, columns=[name for name in SCHEMAS["sampled"].names if name != "tuned"])


def _rows(
    methods: Sequence[Effects], clusters: Mapping[str, str], draws: int, seed: int
) -> Iterator[dict[str, object]]:
    references = {family.method: family for family in methods if family.method in REFERENCES}
    for family in methods:
        if family.method == "synergy":  # no estimate of an effect
            continue
        halved = split_half(family.values.T, [clusters.get(prompt, prompt) for prompt in family.prompts], seed)
        for reference, other in references.items():
            units = sorted(set(family.units) & set(other.units), key=family.units.index)
            both = [prompt for prompt in family.prompts if prompt in other.prompts]
            if reference == family.method or not units or not both:
                continue
            x, y = (_table(side, both, units) for side in (family, other))
            rho, lo, hi, n = bootstrap_spearman(x, y, draws, seed, [clusters.get(prompt, prompt) for prompt in both])
            labels: dict[str, object] = {"method": family.method, "direction": family.direction, "reference": reference}
            yield labels | {"rho": rho, "lo": lo, "hi": hi, "n": n} | halved


def _table(effects: Effects, prompts: Sequence[str], units: Sequence[Unit]) -> Floats:
    """(prompts, units): the values of these, in this order."""
    row, column = (dict(zip(names, range(len(names)), strict=True)) for names in (effects.units, effects.prompts))
    return effects.values[np.ix_([row[unit] for unit in units], [column[prompt] for prompt in prompts])].T


def split_half(values: Floats, clusters: Sequence[str], seed: int) -> dict[str, float]:
    """`split_half chosen_here chosen_there` of (prompts, units), means over random halves; NaN with too few."""
    found: list[tuple[float, float, float]] = []
    for first in halves(clusters, seed) if values.shape[1] >= 3 else ():
        here, there = means(values.T, np.stack([first, ~first]))
        chosen = np.argsort(-np.abs(here))[: max(1, round(CHOSEN * len(here)))]
        sign = np.sign(here[chosen])
        known = not np.isnan(here + there).any() and np.ptp(here) and np.ptp(there)
        rho = float(spearmanr(here, there).statistic) if known else np.nan
        found.append((rho, float((here[chosen] * sign).sum()), float((there[chosen] * sign).sum())))
    over_all = means(np.reshape(found, (-1, 3)).T, np.ones((1, len(found)), bool))[0]
    return dict(zip(("split_half", "chosen_here", "chosen_there"), over_all.tolist(), strict=True))
