"""Which heads' patterns changed more than rounding and random T change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from probes.store.schemas import ALL_DOMAINS
from tv.prompts.encoding import Encoded
from tv.stats.families import benjamini_hochberg
from tv.stats.means import mean_interval

Floats = NDArray[np.float64]
HEAD = ["layer", "component", "head"]
#: The false-discovery rate below which a head stands out.
LEVEL = 0.05


def head_rows(
    tuned: pd.DataFrame, floor: pd.DataFrame, random: Sequence[pd.DataFrame], encoded: Sequence[Encoded]
) -> pd.DataFrame:
    """The table `attention_heads`: means over the prompts of each domain, beside both nulls.

    Args:
        tuned: The heads of the real pair, by prompt; see `read_attention`.
        floor: Of the base beside itself in another precision.
        random: Of the base beside base + random T, a draw each.
        encoded: The prompts of all of them.

    Returns:
        A row per domain and head; p is that of one more draw of random T, see `beyond_random`.
    """
    clusters = {item.prompt.id: item.prompt.cluster or item.prompt.id for item in encoded}
    domains: dict[str, list[str]] = {ALL_DOMAINS: [item.prompt.id for item in encoded]}
    for item in encoded:
        domains.setdefault(item.prompt.domain, []).append(item.prompt.id)
    every = [_by_head(frame) for frame in (tuned, floor, *random)]
    known = set(every[0]["js"].index) if every[0] else set()
    rows = []
    for domain, wanted in domains.items():
        ids = [prompt for prompt in wanted if prompt in known]
        if not ids:  # texts of one token, in which no query has a choice
            continue
        own, rounded, *draws = (_of(tables, ids) for tables in every)
        rows.append(_domain(domain, own, rounded, draws, [clusters[i] for i in ids]))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def beyond_random(
    js: Floats, draws: Floats, layers: NDArray[np.int64], sampling: Floats, n: int
) -> tuple[Floats, Floats]:
    """Whether a head's divergence is larger than one more random T would give it.

    Logarithms of the draws scatter around each head's mean by one variance a layer, which its heads estimate together;
    the variance over prompts of the log ratio is added. p is one-sided, of Student's t with the fewer degrees of
    freedom of the two.

    Args:
        js: (heads,), in nats.
        draws: (draws, heads).
        layers: (heads,).
        sampling: (heads,): the squared standard error over prompts of log(js) − log(null).
        n: Clusters of prompts.

    Returns:
        The geometric mean of each head's draws, and p; NaN where a draw or the head did not move at all.

    Examples:
        >>> null = np.array([[1.0, 1.1], [1.2, 1.0], [0.9, 1.0]])
        >>> beyond_random(np.array([1.0, 9.0]), null, np.array([0, 0]), np.zeros(2), 40)[1].round(3).tolist()
        [0.575, 0.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        own, null = np.log(js), np.log(draws)
        null = np.where(np.isfinite(null), null, np.nan)
        middle = null.mean(0)
        p = np.full(js.shape, np.nan)
        for layer in np.unique(layers):
            drawn = (layers == layer) & np.isfinite(middle)
            df = (len(draws) - 1) * int(drawn.sum())
            if not df:
                continue
            spread = ((null[:, drawn] - middle[drawn]) ** 2).sum() / df
            at = drawn & np.isfinite(own)
            t = (own[at] - middle[at]) / np.sqrt(spread * (1 + 1 / len(draws)) + sampling[at])
            p[at] = stats.t.sf(t, max(1, min(df, n - 1)))
        return np.exp(middle), p


def _domain(
    domain: str,
    own: Mapping[str, pd.DataFrame],
    rounded: Mapping[str, pd.DataFrame],
    draws: Sequence[Mapping[str, pd.DataFrame]],
    clusters: Sequence[str],
) -> pd.DataFrame:
    js = own["js"].to_numpy(np.float64)
    still = ~(js > 0).any(0)
    heads = own["js"].columns.to_frame(index=False)
    means = mean_interval(js, clusters)
    drawn = np.stack([draw["js"].reindex(columns=own["js"].columns).to_numpy(np.float64) for draw in draws])
    by_draw, null = drawn.mean(1), drawn.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = js / js.mean(0) - null / null.mean(0)
    sampling = _squared_error(apart, clusters)
    layers = heads.layer.to_numpy(np.int64)
    middle, p = beyond_random(means.mean, by_draw, layers, sampling, len(set(clusters)))
    floor = rounded["js"].reindex(columns=own["js"].columns).to_numpy(np.float64).mean(0)
    q = benjamini_hochberg(p)
    share = _ratio(own["own"].to_numpy(np.float64), js, clusters)
    random_own = np.stack([draw["own"].reindex(columns=own["js"].columns).to_numpy(np.float64) for draw in draws])
    columns: dict[str, Any] = {
        "domain": domain,
        "n": means.n,
        "js": means.mean,
        "js_lo": means.lo,
        "js_hi": means.hi,
        "js_floor": floor,
        "js_random": middle,
        "js_random_most": by_draw.max(0),
        "draws": len(draws),
        "p": p,
        "q": q,
        "stands_out": (q < LEVEL) & (np.nan_to_num(means.lo, nan=-1.0) > floor),
        "own_share": share[0],
        "own_share_lo": share[1],
        "own_share_hi": share[2],
        "own_share_random": _quotient(random_own.mean((0, 1)), null.mean(0)),
    }
    rows = heads.assign(**columns)
    for name in ("score_own", "score_inherited", "score_interaction", "first_base", "first_tuned"):
        rows[name] = own[name].mean(axis=0, skipna=True).to_numpy()
    rows["error"] = own["error"].max(axis=0).to_numpy()
    moved = ["js", "js_lo", "js_hi", "own_share", "own_share_lo", "own_share_hi"]
    rows.loc[still, moved] = np.nan  # nothing moved: there is no divergence to tell
    return rows


def _ratio(part: Floats, whole: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """mean(part)/mean(whole) with its 95 % interval over clusters, by linearising the ratio."""
    ratio = _quotient(part.mean(0), whole.mean(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        around = ratio + (part - ratio * whole) / whole.mean(0)
    means = mean_interval(around, clusters)
    return ratio, means.lo, means.hi


def _quotient(part: Floats, whole: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _squared_error(values: Floats, clusters: Sequence[str]) -> Floats:
    """(heads,): the squared standard error of a mean over prompts, clusters kept whole."""
    names, which = np.unique(np.asarray(clusters, str), return_inverse=True)
    totals = np.zeros((len(names), values.shape[1]))
    np.add.at(totals, which, values - values.mean(0))
    few = len(names) / max(1, len(names) - 1)
    squared: Floats = few * (totals**2).sum(0) / len(values) ** 2
    return np.nan_to_num(squared)


def _by_head(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By measure, prompts × heads, over all queries of a prompt."""
    rows = frame[frame.place == "all"] if len(frame) else frame
    if not len(rows):
        return {}
    table = rows.pivot(index="prompt_id", columns=HEAD)
    return {name: table[name] for name in rows.columns if name not in (*HEAD, "prompt_id", "place")}


def _of(tables: Mapping[str, pd.DataFrame], ids: Sequence[str]) -> dict[str, pd.DataFrame]:
    return {name: table.reindex(ids) for name, table in tables.items()}
