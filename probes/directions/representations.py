"""The rows of one layer: distances, spectrum and angles of Δh beside their nulls; and the curve of projections."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probes.directions.distances import distances, measures
from probes.directions.projecting import Curve, Patched
from probes.directions.subspaces import delta_angles, spectrum
from probes.store.schemas import ALL_DOMAINS
from tv.stats.means import mean_interval

Floats = NDArray[np.float64]
States = Float[Tensor, "n d"]
K = TypeVar("K")
#: By what is measured: of the base in another precision, and of each draw of base + random T.
Nulls: TypeAlias = tuple[Sequence[Mapping[K, float]], Sequence[Mapping[K, float]]]
#: Draws of random subspaces, and of shuffled rows.
DRAWS = 20


@dataclass(frozen=True)
class Layer:
    """States of both models, a row a prompt, and of the base beside what has learnt nothing."""

    base: States
    tuned: States
    rounded: Sequence[tuple[States, States]] = ()
    random: Sequence[tuple[States, States]] = ()


def distance_rows(layer: Layer, clusters: Sequence[str], k: int, seed: int) -> list[dict[str, object]]:
    """Rows of `distances`."""
    rows = []
    for found in distances(layer.base, layer.tuned, clusters, k=k, draws=DRAWS, seed=seed):
        measure = measures(_near(k, len(layer.base)))[found.measure]
        far = max if found.measure == "procrustes" else min
        rounded, random = (
            far((measure(*pair) for pair in pairs), default=math.nan) for pairs in (layer.rounded, layer.random)
        )
        least = far(rounded, random)
        beyond = found.lo > least if found.measure == "procrustes" else found.hi < least
        row = vars(found) | {"k": _near(k, len(layer.base)) if found.measure == "neighbours" else math.nan}
        rows.append(row | {"rounded": rounded, "random": random, "beyond": bool(beyond)})
    return rows


def spectrum_rows(layer: Layer, clusters: Sequence[str], seed: int) -> list[dict[str, object]]:
    """Rows of `delta_spectrum`; none where nothing moved."""
    own = spectrum(layer.tuned - layer.base, clusters, seed)
    states = {each.component: each.share for each in spectrum(layer.base, clusters, seed)} if own else {}
    nulls = _nulls(layer, lambda base, other: {s.component: s.share for s in spectrum(other - base, clusters, seed)})
    return [
        vars(each)
        | {"states": states.get(each.component, math.nan)}
        | _beside(each.lo, nulls, each.component, -math.inf)
        for each in own
    ]


def angle_rows(
    layer: Layer, matrices: Mapping[str, States], clusters: Sequence[str], seed: int
) -> list[dict[str, object]]:
    """Rows of `delta_angles`; none where nothing moved."""

    def overlaps(base: States, other: States) -> dict[tuple[str, int], float]:
        found = delta_angles(other - base, base, matrices, clusters, draws=0, seed=seed, intervals=False)
        return {(each.against, each.rank): each.overlap for each in found}

    own = list(delta_angles(layer.tuned - layer.base, layer.base, matrices, clusters, draws=DRAWS, seed=seed))
    nulls = _nulls(layer, overlaps) if own else ([], [])
    return [vars(each) | _beside(each.lo, nulls, (each.against, each.rank), each.null_hi) for each in own]


def curve_rows(found: Curve, metric: str) -> pd.DataFrame:
    """Rows of `delta_curve`; random directions averaged over their draws."""
    domains = np.array([item.prompt.domain for item in found.prompts], dtype=np.str_)
    clusters = np.array([item.prompt.cluster or item.prompt.id for item in found.prompts], dtype=np.str_)
    drawn: dict[tuple[str, int, str, int], list[Patched]] = {}
    for each in found.patched:
        drawn.setdefault((*each.place, each.basis, each.rank), []).append(each)
    rows = []
    for domain in (ALL_DOMAINS, *dict.fromkeys(domains.tolist())):
        here = (domains == domain) | (domain == ALL_DOMAINS)
        whole = mean_interval(found.whole[here], clusters[here].tolist())
        moves = bool(whole.p < 0.05)
        for (site, layer, basis, rank), several in drawn.items():
            effects = np.mean([each.effects for each in several], axis=0)[here]
            mean = mean_interval(effects, clusters[here].tolist())
            share = _share(effects, found.whole[here], clusters[here]) if moves else (math.nan,) * 3
            rows.append(
                {"site": site, "layer": layer, "basis": basis, "rank": rank, "domain": domain, "metric": metric}
                | {"n": int(here.sum()), "effect": float(mean.mean), "lo": float(mean.lo), "hi": float(mean.hi)}
                | {"whole": float(whole.mean)}
                | dict(zip(("share", "share_lo", "share_hi"), share, strict=True))
            )
    return pd.DataFrame(rows)


def _share(effects: Floats, whole: Floats, clusters: NDArray[np.str_]) -> tuple[float, float, float]:
    """A ratio of two means over the same prompts, with the interval of its linear approximation."""
    known = ~np.isnan(effects + whole)
    share = float(effects[known].mean() / whole[known].mean())
    mean = mean_interval(share + (effects - share * whole) / whole[known].mean(), clusters.tolist())
    return share, float(mean.lo), float(mean.hi)


def _near(k: int, n: int) -> int:
    return max(1, min(k, (n - 1) // 2))


def _nulls(layer: Layer, measured: Callable[[States, States], Mapping[K, float]]) -> Nulls[K]:
    return [measured(*pair) for pair in layer.rounded], [measured(*pair) for pair in layer.random]


def _beside(lo: float, nulls: Nulls[K], key: K, bar: float) -> dict[str, object]:
    """The largest of each null, and whether `lo` is above both and above a bar."""
    rounded, random = (max((each.get(key, 0.0) for each in null), default=math.nan) for null in nulls)
    return {"rounded": rounded, "random": random, "beyond": bool(lo > rounded and lo > random and lo > bar)}
