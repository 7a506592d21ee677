"""Nodes where integrands bend: how the integrals of some prompts over [0, 1] are taken with as few nodes as they need.

A node costs a forward and a backward pass, and gives two things: the integrand, and the metric M itself. Between two
nodes the integrand must therefore integrate to a difference that is known. The rule begins with the nodes of
Gauss–Legendre, and while the prompts together miss too much, those that miss most get nodes in the middle of the
intervals that miss most. All nodes stay in use: from then on the weights are those of the cubic spline through them
(not-a-knot), so they depend on the places of the nodes alone.

The error estimate is Σ over intervals |what the rule says − what M says|. Where a narrow interval misses most, M jumps
(a router chooses another expert), and a prompt gets no more nodes: none integrate a jump. A cubic spline rings beside a
jump; where a linear one misses less, the weights are its.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from probes.attribution.forwards import Floats

#: Errors of intervals cancel in the sum; they may be this many times as large as what the sum may miss.
CANCEL = 3.0
#: One prompt may miss this many times what prompts may miss on average.
OWN = 5.0
#: The prompts that get no node may miss this part of what all may miss; those that do will miss the rest.
REST = 0.7
#: Every interval that misses at least this part of what the worst misses is halved: fewer rounds, so that more prompts
#: share a pass.
WORST = 0.1
#: Where an interval narrower than this misses most, the metric jumps there.
NARROW = 1 / 256
#: A spline needs so many nodes; fewer have one polynomial.
_CUBIC = 4


def wanted(integrals: Sequence[Integral], allowed: float) -> list[tuple[float, ...]]:
    """The nodes that each needs next, until together they miss little enough; none of any where they do.

    Args:
        integrals: Of prompts whose errors are summed.
        allowed: What they may miss on average. One of them may miss `OWN` times as much.

    Returns:
        For each integral its next nodes, () where it gets none.
    """
    if not all(one.known for one in integrals):
        return [tuple(gauss_legendre(one.nodes)[0].tolist()) for one in integrals]
    misses = np.array([one.missed() for one in integrals])
    several, own = allowed * len(misses), OWN * allowed
    if misses.sum() <= several and (misses <= own).all():
        return [()] * len(misses)
    order = np.argsort(misses, kind="stable")
    enough = (np.cumsum(misses[order]) <= REST * several) & (misses[order] <= own)
    finer = set(order[~enough].tolist())
    return [one.finer() if i in finer else () for i, one in enumerate(integrals)]


@dataclass
class Integral:
    """The nodes of one prompt's integral that are known."""

    start: float  # the metric at 0
    end: float  # the metric at 1
    nodes: int  # to begin with
    most: int  # at most
    floor: float = 0.0  # what rounding alone can do to the metric
    known: dict[float, tuple[float, float]] = field(default_factory=dict)  # by node: the metric, and its slope

    def missed(self) -> float:
        """What the sum misses of the change, or what the intervals miss, over `CANCEL`, if that is more; ∞ if NaN."""
        _, misses = self._rule()
        error = float(np.abs(misses).sum())
        if not np.isfinite(error):
            return np.inf
        return max(abs(float(misses.sum())), error / CANCEL if error > self.floor else 0.0)

    def finer(self) -> tuple[float, ...]:
        """The middles of the intervals that miss most; none where more nodes would not help."""
        misses = np.abs(self._rule()[1])
        edges = np.array([0.0, *sorted(self.known), 1.0])
        worst = misses.argsort(kind="stable")[::-1][: max(0, self.most - len(self.known))]
        if not np.isfinite(misses).all() or not len(worst) or np.diff(edges)[worst[0]] < NARROW:
            return ()
        halved = [i for i in sorted(worst) if misses[i] >= WORST * misses.max()]
        return tuple(float(edges[i] + edges[i + 1]) / 2 for i in halved)

    def weights(self) -> dict[float, float]:
        """The weight of every known node."""
        at = np.array(sorted(self.known))
        return dict(zip(at.tolist(), self._rule()[0].sum(0).tolist(), strict=True))

    def _rule(self) -> tuple[Floats, Floats]:
        """The weights by interval, and what each interval misses: what the rule says less what M says."""
        at = tuple(sorted(self.known))
        metric, slope = np.array([self.known[alpha] for alpha in at]).T
        change = np.diff([self.start, *metric, self.end])
        begins = len(at) == self.nodes or len(at) < _CUBIC
        rules = [_kept(at, degree) for degree in ([len(at) - 1] if begins else [3, 1])]
        return min(((rule, rule @ slope - change) for rule in rules), key=lambda found: np.abs(found[1]).sum())


@lru_cache(1024)
def _kept(at: tuple[float, ...], degree: int) -> Floats:
    """Many prompts have the same nodes."""
    return by_interval(np.array(at), degree)


def gauss_legendre(n: int) -> tuple[Floats, Floats]:
    """The n nodes on [0, 1] and their weights.

    Examples:
        >>> [part.tolist() for part in gauss_legendre(1)]
        [[0.5], [1.0]]
    """
    x, weights = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, weights / 2


def by_interval(at: Floats, degree: int) -> Floats:
    """What every node weighs in every interval: between 0, the nodes in ascending order, and 1.

    Args:
        at: The nodes, inside (0, 1).
        degree: Of the spline through all nodes; one less than there are nodes is one polynomial, as Gauss–Legendre has
            it.

    Returns:
        (intervals, nodes), one interval more than nodes.

    Examples:
        >>> by_interval(np.array([0.5]), 0).tolist()
        [[0.5], [0.5]]
    """
    edges, identity = np.array([0.0, *at, 1.0]), np.eye(len(at))
    if degree < len(at) - 1:
        from scipy.interpolate import make_interp_spline  # here: a command that integrates nothing does without

        return np.diff(make_interp_spline(at, identity, k=degree).antiderivative()(edges), axis=0)
    legendre = np.polynomial.legendre
    powers = [legendre.legval(2 * edges - 1, legendre.legint(row)) / 2 for row in identity]
    return np.diff(np.array(powers).T, axis=0) @ np.linalg.inv(legendre.legvander(2 * at - 1, len(at) - 1))
