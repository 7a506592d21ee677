"""The numbers that rules are about, each with the test of whether it is beyond a bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from scipy import stats

from tv.stats.means import FEWEST, Floats, mean_interval
from tv.stats.proportions import share_change, share_interval

Clusters = Sequence[str] | None
#: The smallest probability that the level of an end is searched at.
_LEAST = 1e-9


class Estimate(Protocol):
    """A number with its error.

    Its ends are one-sided: `lower(0.05)` is above the truth at most once in twenty. `p_above(bound)` is p of the number
    being at most `bound`, small where it is above; `p_below(bound)` is p of it being at least `bound`.
    """

    sampled: ClassVar[tuple[bool, bool]]  # whether p_above and p_below are tests, and not yes or no

    @property
    def value(self) -> float: ...

    @property
    def n(self) -> int:
        """Independent units: prompts, clusters of them, draws; 0 of a number without sampling."""

    def lower(self, alpha: float) -> float: ...

    def upper(self, alpha: float) -> float: ...

    def p_above(self, bound: float) -> float: ...

    def p_below(self, bound: float) -> float: ...


@dataclass(frozen=True)
class Exact:
    """A number without sampling, such as a share of T: within its bound or not, at once."""

    value: float
    n: int = 0
    sampled: ClassVar = (False, False)

    def lower(self, alpha: float) -> float:
        return self.value

    def upper(self, alpha: float) -> float:
        return self.value

    def p_above(self, bound: float) -> float:
        return float(self.value <= bound)

    def p_below(self, bound: float) -> float:
        return float(self.value > bound)


@dataclass(frozen=True)
class Average:
    """A mean over prompts, or their clusters."""

    values: Floats
    clusters: Clusters
    sampled: ClassVar = (True, True)

    @property
    def value(self) -> float:
        return float(np.mean(self.values)) if len(self.values) else math.nan

    @property
    def n(self) -> int:
        return units(self.values, self.clusters)

    def lower(self, alpha: float) -> float:
        return float(mean_interval(self.values, self.clusters, 1 - 2 * alpha).lo)

    def upper(self, alpha: float) -> float:
        return float(mean_interval(self.values, self.clusters, 1 - 2 * alpha).hi)

    def p_above(self, bound: float) -> float:
        return self._one_sided(self.values - bound)

    def p_below(self, bound: float) -> float:
        return self._one_sided(bound - self.values)

    def _one_sided(self, beyond: Floats) -> float:
        """p of a mean of at most 0."""
        if not len(beyond):
            return math.nan
        p = float(mean_interval(beyond, self.clusters).p)
        return p / 2 if np.mean(beyond) > 0 else 1 - p / 2


@dataclass(frozen=True)
class Scored:
    """A share, or a change of one, by a score interval: its p is the level at which an end just touches the bound."""

    ends: Callable[[float], tuple[float, float, float]]  # level → value, lo, hi
    n: int
    sampled: ClassVar = (True, True)

    @property
    def value(self) -> float:
        return self.ends(0.95)[0]

    def lower(self, alpha: float) -> float:
        return self.ends(1 - 2 * alpha)[1]

    def upper(self, alpha: float) -> float:
        return self.ends(1 - 2 * alpha)[2]

    def p_above(self, bound: float) -> float:
        return math.nan if self.n < FEWEST else _touching(lambda alpha: self.lower(alpha) > bound)

    def p_below(self, bound: float) -> float:
        return math.nan if self.n < FEWEST else _touching(lambda alpha: self.upper(alpha) < bound)


@dataclass(frozen=True)
class Rank:
    """p of what was measured among draws of a null that reach it: (1 + reached)/(1 + draws).

    That the p of endless draws is above a bound is tested by the binomial; that it is below, by the rank itself.
    """

    reached: int
    draws: int
    sampled: ClassVar = (True, True)

    @property
    def value(self) -> float:
        return (1 + self.reached) / (1 + self.draws)

    @property
    def n(self) -> int:
        return self.draws

    def lower(self, alpha: float) -> float:
        k = self.reached
        return float(stats.beta.ppf(alpha, k, self.draws - k + 1)) if k else 0.0

    def upper(self, alpha: float) -> float:
        return min(1.0, self.value * 0.05 / alpha)

    def p_above(self, bound: float) -> float:
        return float(stats.binom.sf(self.reached - 1, self.draws, bound))

    def p_below(self, bound: float) -> float:
        return min(1.0, self.value * 0.05 / bound)


@dataclass(frozen=True)
class Found:
    """How many findings count, each with a p that is corrected for all that was looked at."""

    ps: tuple[float, ...]  # the smallest first
    n: int = 0
    sampled: ClassVar = (True, False)

    @property
    def value(self) -> float:
        return float(len(self.ps))

    def lower(self, alpha: float) -> float:
        return float(sum(p <= alpha for p in self.ps))

    def upper(self, alpha: float) -> float:
        return self.value

    def p_above(self, bound: float) -> float:
        return self.ps[int(bound)] if len(self.ps) > int(bound) else 1.0

    def p_below(self, bound: float) -> float:
        return float(self.value > bound)


def average(values: Floats, clusters: Clusters) -> Average | Exact:
    """The mean of values; of enough units that are all alike, that value itself."""
    n = units(values, clusters)
    return Exact(float(values[0]), n) if n >= FEWEST and not np.ptp(values) else Average(values, clusters)


def share(values: Floats, clusters: Clusters) -> Scored:
    """A share of ones (Wilson)."""
    return Scored(lambda level: share_interval(values, clusters, level), units(values, clusters))


def moved_share(before: Floats, after: Floats, clusters: Clusters) -> Scored:
    """How far a share of ones moved on the same prompts (Newcombe)."""
    return Scored(lambda level: share_change(before, after, clusters, level), units(after, clusters))


def units(values: Floats, clusters: Clusters) -> int:
    """How many independent units the values are of: clusters where there are any, else prompts."""
    return len(values) if clusters is None else len(set(clusters))


def _touching(beyond: Callable[[float], bool]) -> float:
    """The smallest probability at which an end is beyond the bound; 1 where it never is."""
    if not beyond(0.5 - _LEAST):
        return 1.0
    low, high = math.log(_LEAST), math.log(0.5)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(math.exp(middle)) else (middle, high)
    return math.exp(high)
