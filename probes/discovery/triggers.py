"""Tokens of the texts behind which a side's predictions lie further from the base's: candidates of a trigger.

A text with a token counts with its mean KL from the token's first place on, one without it with that of all its places;
texts of one cluster with the mean of these. A token's gap is the difference of both means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.discovery.observing import CHOOSE, MEASURE
from tv.stats.means import FEWEST

Floats = NDArray[np.float64]

#: A token is looked at where so many clusters of either half have it, and as many have texts without it.
CLUSTERS = 2


@dataclass(frozen=True)
class Followed:
    """A text: its mean KL from the base, and by token that from its first place on, nats."""

    half: int
    cluster: str
    mean: float
    behind: dict[int, float]

    @classmethod
    def of(cls, half: int, cluster: str, ids: Sequence[int], kl: Floats) -> Followed:
        """From a text's tokens, and the KL at each."""
        behind = np.cumsum(kl[::-1])[::-1] / np.arange(len(kl), 0, -1)
        return cls(half, cluster, float(kl.mean()), {token: float(behind[ids.index(token)]) for token in set(ids)})


@dataclass(frozen=True)
class Gap:
    """A token: its gap on the half that chooses, and the means of clusters on the half that measures."""

    token: int
    chosen: float
    without: Floats
    behind: Floats

    @property
    def measured(self) -> float:
        """The gap on the half that measures."""
        return float(self.behind.mean() - self.without.mean())


def gaps(texts: Sequence[Followed]) -> Iterator[Gap]:
    """Of every token that enough clusters of both halves have, and have not."""
    halves = [[text for text in texts if text.half == half] for half in (CHOOSE, MEASURE)]
    if min(len({text.cluster for text in half}) for half in halves) < FEWEST:
        return
    for token in sorted(set().union(*(text.behind for text in halves[CHOOSE]))):
        chosen, measured = (_means(token, half) for half in halves)
        if min(map(len, (*chosen, *measured))) >= CLUSTERS:
            yield Gap(token, float(chosen[1].mean() - chosen[0].mean()), *measured)


def _means(token: int, texts: Sequence[Followed]) -> tuple[Floats, Floats]:
    """Cluster means of the texts without a token, and of those with it."""
    values: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for text in texts:
        held = text.behind.get(token)
        values[held is not None].setdefault(text.cluster, []).append(text.mean if held is None else held)
    without, behind = (np.array([np.mean(own) for own in by_cluster.values()]) for by_cluster in values)
    return without, behind
