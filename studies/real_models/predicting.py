"""Does what the weights of two fine-tunes have in common foretell what they do to each other, out of sample?

The unit is an ordered pair of domains: the loss of one on its own texts, before and after the other is added. Pairs
share domains, so the null relabels domains and keeps the rest: every order of them (quadratic assignment).

Source: D. Krackhardt (1988), Soc. Networks 10 (the permutation of whole rows and columns).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations, permutations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from tv.stats.means import mean_interval

#: Of two T, by their weights alone: columns of what `interference` gives.
MEASURES = (
    *("cosine", "cosine_z", "sign_excess", "conflict_energy", "norm_share", "cosine_shared_z"),
    *("overlap_left_kappa", "overlap_right_kappa", "ssa_left_kappa", "ssa_right_kappa"),
)
#: What needs no weights: the other fine-tune's own effect on these texts, and what the same pair did elsewhere.
BEHAVIOUR = ("transfer", "interference")
_UNIT = ["model", "seed", "domain", "other"]


def interference(sums: pd.DataFrame, pairs: pd.DataFrame, transfer: pd.DataFrame) -> pd.DataFrame:
    """A row per model, seed, domain and other domain, from the tables of `adding`'s stages.

    `interference lo hi p n`: what adding the other costs on the domain's texts, nats a token, over clusters of texts;
    `control …`: of a random vector of its norms; `beyond …`: the first less the second. Beside them `MEASURES`
    (`sign_excess`: signs that differ, above chance; `norm_share`: ‖T_other‖/(‖T_other‖ + ‖T_domain‖); `ssa_…_kappa`:
    T_other in the leading directions of T_domain) and `transfer`, what the other alone costs on these texts.
    """
    rows = []
    for where, texts in sums.groupby(_UNIT, sort=False):
        row = dict(zip(_UNIT, where, strict=True))
        clusters = texts.cluster.astype(str).tolist()
        beyond = texts.interference - texts.control
        for name, values in {"interference": texts.interference, "control": texts.control, "beyond": beyond}.items():
            found = mean_interval(values, clusters)
            row |= {name: float(found.mean), f"{name}_lo": float(found.lo), f"{name}_hi": float(found.hi)}
            row[f"{name}_p"] = float(found.p)
        rows.append(row | {"n": len(texts)})
    full = transfer[transfer.method == "full"]
    alone = full.groupby(["model", "seed", "text", "domain"]).change.mean().rename_axis(_UNIT).rename("transfer")
    return pd.DataFrame(rows).merge(_both_ways(pairs), on=_UNIT, how="left").join(alone, on=_UNIT)


def _both_ways(pairs: pd.DataFrame) -> pd.DataFrame:
    """A row for `a` under `b`, and one for `b` under `a`."""
    frames = []
    for own, other, order in (("a", "b", "b_in_a"), ("b", "a", "a_in_b")):
        norms = pairs[f"norm_{other}"], pairs[f"norm_{own}"]
        frames.append(
            pairs.assign(
                domain=pairs[own],
                other=pairs[other],
                sign_excess=pairs.sign_conflict - pairs.sign_conflict_null,
                norm_share=norms[0] / (norms[0] + norms[1]),
                ssa_left_kappa=pairs[f"ssa_left_{order}_kappa"],
                ssa_right_kappa=pairs[f"ssa_right_{order}_kappa"],
            )[[*_UNIT, *MEASURES]]
        )
    return pd.concat(frames)


def predictions(found: pd.DataFrame) -> pd.DataFrame:
    """Whether a measure that orders pairs by interference in one place orders them alike in another.

    Args:
        found: What `interference` gives.

    Returns:
        A row per place, test and measure. `across`: a model is tested on another (means over seeds), or a seed on
        another of one model. `rho_train` and `rho` are rank correlations with interference over pairs; of the measures
        of weights the one with the largest |rho_train| is `chosen`.

        Both places have the same domains, texts and so much of their noise, so the null relabels the domains of both
        outcomes alike, and each time takes the sign, and what is `chosen`, anew: `p` is the share of orders under which
        rho, in the direction of its rho_train, is as large, the real order among them; `least_p` the least that so few
        domains can give; `null_lo null_hi` hold the middle 95 % of these rho.
    """
    rows = []
    for across, train, test, first, second in _places(found):
        trained = {name: _rho(first[name], first.interference) for name in (*MEASURES, "transfer")}
        tested = {name: _rho(second[name], second.interference) for name in trained}
        nulls = {name: np.sign(trained[name]) * tested[name] for name in trained}
        known = [name for name in MEASURES if not np.isnan(trained[name][0])]
        chosen = max(known, key=lambda name: abs(trained[name][0]), default=None)
        if chosen:
            best = np.argmax(np.abs([np.nan_to_num(trained[name]) for name in known]), axis=0)
            nulls[chosen] = np.array([nulls[name] for name in known])[best, np.arange(len(best))]
        # What happened there is itself a measure here, and nothing is left to choose: its sign is +.
        tested["interference"] = nulls["interference"] = _rho(first.interference, second.interference)
        for name, null in nulls.items():
            row = {"across": across, "train": train, "test": test, "measure": name, "chosen": name == chosen}
            row |= {"rho_train": trained[name][0] if name in trained else np.nan, "rho": tested[name][0]}
            lo, hi = (np.nan, np.nan) if np.isnan(null[0]) else np.nanquantile(null, (0.025, 0.975))
            far = np.isnan(null) | (null >= null[0] - 1e-9)
            p = np.nan if np.isnan(null[0]) else far.mean()
            rows.append(row | {"pairs": len(second), "null_lo": lo, "null_hi": hi, "p": p, "least_p": 1 / len(null)})
    return pd.DataFrame(rows)


def _places(found: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame, pd.DataFrame]]:
    """(across, train, test, tables of both by pair), on the pairs that both have."""
    columns = [*MEASURES, *BEHAVIOUR]
    models = {name: rows.groupby(["domain", "other"])[columns].mean() for name, rows in found.groupby("model")}
    seeds = {
        model: {str(seed): one.groupby(["domain", "other"])[columns].mean() for seed, one in rows.groupby("seed")}
        for model, rows in found.groupby("model")
    }
    for across, tables in (("model", models), *((f"seed of {model}", tables) for model, tables in seeds.items())):
        for one, two in combinations(tables, 2):
            shared = tables[one].index.intersection(tables[two].index)
            for train, test in ((one, two), (two, one)):
                yield across, train, test, tables[train].loc[shared], tables[test].loc[shared]


def _rho(measure: pd.Series, outcome: pd.Series) -> NDArray[np.float64]:
    """Rank correlations of two tables by (domain, other), the second under every order of the domains: itself first."""
    domains = sorted({*measure.index.get_level_values(0), *measure.index.get_level_values(1)})
    place = {name: i for i, name in enumerate(domains)}
    at = np.array([(place[one], place[other]) for one, other in measure.index])
    left, right = (
        rankdata(values.to_numpy(np.float64).round(9), nan_policy="propagate") for values in (measure, outcome)
    )
    grid = np.full((len(domains), len(domains)), np.nan)
    grid[at[:, 0], at[:, 1]] = right - right.mean()
    orders = _orders(len(domains))
    under = grid[orders[:, at[:, 0]], orders[:, at[:, 1]]]
    left = left - left.mean()
    size = np.linalg.norm(left) * np.linalg.norm(right - right.mean())
    return under @ left / size if size else np.full(len(orders), np.nan)


@lru_cache
def _orders(n: int) -> NDArray[np.int64]:
    return np.array(list(permutations(range(n))))
