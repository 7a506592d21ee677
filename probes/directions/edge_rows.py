"""The tables of edges: means over prompts beside the rounding floor and random T."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from probes.attribution.effects import floor_of
from probes.directions.edge_curves import RANKED, Curve
from probes.directions.edges import Edges
from probes.store.schemas import ALL_DOMAINS
from tv.prompts.encoding import Encoded
from tv.stats.families import benjamini_hochberg
from tv.stats.means import Floats, mean_interval

LEVEL = 0.05


def edge_rows(
    edges: Edges, random: Sequence[Edges], encoded: Sequence[Encoded], floors: Mapping[str, float], metric: str
) -> pd.DataFrame:
    """The table `edges`: a row per domain and edge that there can be.

    Args:
        edges: Of the real pair.
        random: Of base + random T of T's norms, a draw each, on the same prompts.
        encoded: The prompts.
        floors: By domain, what rounding alone does to the metric.
        metric: Its name.
    """
    senders, receivers = edges.senders, edges.receivers
    at = [
        (i, j) for i, sender in enumerate(senders) for j, receiver in enumerate(receivers) if receiver.at >= sender.at
    ]
    which = tuple(np.array(at).T)
    keys = pd.DataFrame(
        {
            "sender_layer": [senders[i].layer for i, _ in at],
            "sender": [senders[i].component for i, _ in at],
            "head": [senders[i].head for i, _ in at],
            "receiver_layer": [receivers[j].layer for _, j in at],
            "receiver": [receivers[j].component for _, j in at],
        }
    )
    parts = []
    for domain, rows, clusters in _domains(edges, encoded):
        means = mean_interval(edges.values[rows][:, *which], clusters)
        change = float(edges.change[rows].mean())
        floor = floor_of(floors, domain)
        moved = abs(change) > floor
        # the same prompts of every draw: batches are made alike
        drawn = np.stack([one.values[rows][:, *which].mean(0) for one in random])
        q, beyond, of_head = np.empty(len(at)), np.empty(len(at)), keys["head"].to_numpy() >= 0
        for family in (of_head, ~of_head):  # the heads of a component are its parts: no further claims
            beyond[family] = _one_more(means.mean[family], drawn[:, family])
            q[family] = benjamini_hochberg(np.maximum(means.p[family], beyond[family]))
        parts.append(
            keys.assign(
                domain=domain,
                metric=metric,
                n=means.n,
                effect=means.mean,
                lo=means.lo,
                hi=means.hi,
                p=means.p,
                q=q,
                share=means.mean / change if moved else np.nan,
                random_most=np.abs(drawn).max(0),
                random_p=beyond,
                draws=len(random),
                floor=floor,
                stands_out=(q < LEVEL) & (np.abs(means.mean) > np.maximum(np.abs(drawn).max(0), floor)),
            )
        )
    return pd.concat(parts, ignore_index=True)


def _one_more(effects: Floats, drawn: Floats) -> Floats:
    """p of one more random T giving each edge an effect of such a size; NaN where draws do not move it.

    Draws of an edge scatter around 0 with a variance of its own, which few draws hardly tell. All edges together tell
    how such variances are spread, and each is moved towards them: a moderated t.

    Source: G. K. Smyth (2004), Stat. Appl. Genet. Mol. Biol. 3, equations for d₀ and s₀.
    """
    n, moves = len(drawn), (drawn != 0).all(0)
    logs = np.log(np.square(drawn[:, moves]).mean(0)) - digamma(n / 2) + np.log(n / 2)
    apart = logs.var(ddof=1) - polygamma(1, n / 2) if moves.sum() > 1 else 0.0
    prior = 2 * brentq(lambda x: polygamma(1, x) - apart, 1e-4, 1e4) if apart > 1e-3 else 2e4
    level = np.exp(logs.mean() + digamma(prior / 2) - np.log(prior / 2)) if moves.any() else 1.0
    variance = (prior * level + np.square(drawn).sum(0)) / (prior + n)
    return np.where(moves, 2 * stats.t.sf(np.abs(effects) / np.sqrt(variance), prior + n), np.nan)


def node_rows(edges: Edges, encoded: Sequence[Encoded], floors: Mapping[str, float], metric: str) -> pd.DataFrame:
    """The table `edge_nodes`: what flows into and out of every component, and what is missed."""
    whole = [i for i, sender in enumerate(edges.senders) if sender.head < 0]
    parts = []
    for domain, rows, _ in _domains(edges, encoded):
        values = np.nan_to_num(edges.values[rows])
        scale = float(np.abs(edges.change[rows]).mean())
        moved = abs(float(edges.change[rows].mean())) > floor_of(floors, domain)
        out, node, own = values.sum(2), edges.nodes[rows], edges.own[rows]
        lines = []
        for i in whole:
            sender = edges.senders[i]
            alone = [
                j
                for j, receiver in enumerate(edges.receivers)
                if receiver.layer == sender.layer and receiver.component == sender.component
            ]
            received = values[:, whole][:, :, alone].sum(1)[:, 0] if alone else np.full(len(rows), np.nan)
            received = np.zeros(len(rows)) if sender.component == "embed" else received
            lines.append(
                {
                    "layer": sender.layer,
                    "component": sender.component,
                    "received": received.mean(),
                    "own": own[:, i].mean(),
                    "sent": out[:, i].mean(),
                    "node_effect": node[:, i].mean(),
                    "gap": np.abs(out[:, i] - node[:, i]).mean() / scale if moved else np.nan,
                }
            )
        ends = edges.receivers[-1]
        to_logits = values[:, whole, -1].sum(1)
        lines.append(
            {
                "layer": ends.layer,
                "component": ends.component,
                "received": to_logits.mean(),
                "own": edges.ends[rows].mean(),
                "sent": (to_logits + edges.ends[rows]).mean(),
                "node_effect": edges.change[rows].mean(),
                "gap": np.abs(edges.missed[rows]).mean() / scale if moved else np.nan,
            }
        )
        steps = int(edges.steps[rows].max())
        parts.append(pd.DataFrame(lines).assign(domain=domain, metric=metric, n=len(rows), steps=steps))
    return pd.concat(parts, ignore_index=True)


def curve_rows(curves: Sequence[Curve], clusters: Sequence[str], metric: str) -> pd.DataFrame:
    """The table `edge_curves`; faithfulness is 0 with no edge and 1 with all of them."""
    parts = []
    for curve in curves:
        none, every = curve.values[0].mean(), curve.values[-1].mean()
        means = mean_interval(curve.values.T, clusters)
        apart = every - none
        faithful = (means.mean - none) / apart if apart else np.full(len(curve.n), np.nan)
        area = float(np.trapezoid(faithful, np.log2(np.array(curve.n) + 1)) / np.log2(curve.n[-1] + 1))
        parts.append(
            pd.DataFrame(
                {
                    "ranking": curve.ranking,
                    "draw": curve.draw,
                    "n": curve.n,
                    "metric": metric,
                    "value": means.mean,
                    "lo": means.lo,
                    "hi": means.hi,
                    "faithfulness": faithful,
                    "area": area,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def area_p(rows: pd.DataFrame) -> float:
    """The share of orders, the ranking counted among them, whose area is at least the ranking's."""
    areas = rows.drop_duplicates(["ranking", "draw"])
    own = float(areas[areas.ranking == RANKED].area.iloc[0])
    others = areas[areas.ranking != RANKED].area
    return float((1 + (others >= own).sum()) / (1 + len(others)))


def _domains(edges: Edges, encoded: Sequence[Encoded]) -> list[tuple[str, list[int], list[str]]]:
    """Each domain, the places of its prompts in `edges`, and their clusters."""
    items = {item.prompt.id: item.prompt for item in encoded}
    clusters = [items[prompt].cluster or prompt for prompt in edges.prompts]
    named = {ALL_DOMAINS: list(range(len(clusters)))}
    for i, prompt in enumerate(edges.prompts):
        named.setdefault(items[prompt].domain, []).append(i)
    return [(domain, rows, [clusters[i] for i in rows]) for domain, rows in named.items()]
