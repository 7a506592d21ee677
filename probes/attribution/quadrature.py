"""Nodes where the integrand bends: how one prompt's integral over [0, 1] is taken with as few nodes as it needs.

A node costs a forward and a backward pass, and gives two things: the integrand, and the metric M itself. Between two
nodes the integrand must therefore integrate to a difference that is known. The rule begins with the nodes of
Gauss–Legendre, and while something is missed it halves the interval that misses most. All nodes stay in use: from then
on the weights are those of the cubic spline through them (not-a-knot), so they depend on the places of the nodes alone.

The error estimate is Σ over intervals |what the rule says − what M says|. Where halving does not make it less, M jumps
there (a router chooses another expert), and no number of nodes integrates a jump.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from probes.attribution.forwards import Floats

#: Errors of intervals cancel in the sum; they may be this many times as large as what the sum may miss.
CANCEL = 3.0
#: So many more nodes must shrink the error estimate to this part of it, or a prompt is given up.
PATIENCE, HELPS = 6, 0.7
#: A spline needs so many nodes; fewer have one polynomial.
_CUBIC = 4


@dataclass
class Integral:
    """The nodes of one prompt's integral: those that are known, and those that are wanted next."""

    start: float  # the metric at 0
    end: float  # the metric at 1
    nodes: int  # to begin with
    most: int  # at most
    allowed: float  # what the sum may miss of the change
    floor: float = 0.0  # what rounding alone can do to the metric
    known: dict[float, tuple[float, float]] = field(default_factory=dict)  # by node: the metric, and its slope
    errors: list[float] = field(default_factory=list)  # the estimate after each refinement

    def wanted(self) -> tuple[float, ...]:
        """The nodes that it needs next; none where it is done, or more would not help."""
        if not self.known:
            return tuple(gauss_legendre(self.nodes)[0].tolist())
        misses, edges = self._misses()
        error = float(np.abs(misses).sum())
        self.errors.append(error)
        if abs(misses.sum()) <= self.allowed and error <= max(CANCEL * self.allowed, self.floor):
            return ()
        stuck = len(self.errors) > PATIENCE and error > HELPS * self.errors[-1 - PATIENCE]
        if stuck or len(self.known) >= self.most or not np.isfinite(error):
            return ()
        worst = int(np.abs(misses).argmax())
        return (float(edges[worst] + edges[worst + 1]) / 2,)

    def weights(self) -> dict[float, float]:
        """The weight of every known node."""
        at = np.array(sorted(self.known))
        return dict(zip(at.tolist(), self._rule(at).sum(0).tolist(), strict=True))

    def _rule(self, at: Floats) -> Floats:
        return by_interval(at, polynomial=len(at) == self.nodes or len(at) < _CUBIC)

    def _misses(self) -> tuple[Floats, Floats]:
        """By interval: what the rule says less what M says; and the ends of the intervals."""
        at = np.array(sorted(self.known))
        metric, slope = np.array([self.known[alpha] for alpha in at.tolist()]).T
        return self._rule(at) @ slope - np.diff([self.start, *metric, self.end]), np.array([0.0, *at, 1.0])


def gauss_legendre(n: int) -> tuple[Floats, Floats]:
    """The n nodes on [0, 1] and their weights.

    Examples:
        >>> [part.tolist() for part in gauss_legendre(1)]
        [[0.5], [1.0]]
    """
    x, weights = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, weights / 2


def by_interval(at: Floats, *, polynomial: bool) -> Floats:
    """What every node weighs in every interval: between 0, the nodes in ascending order, and 1.

    Args:
        at: The nodes, inside (0, 1).
        polynomial: One polynomial goes through all nodes, as Gauss–Legendre has it; otherwise a cubic spline.

    Returns:
        (intervals, nodes), one interval more than nodes.

    Examples:
        >>> by_interval(np.array([0.5]), polynomial=True).tolist()
        [[0.5], [0.5]]
    """
    edges, identity = np.array([0.0, *at, 1.0]), np.eye(len(at))
    if not polynomial:
        from scipy.interpolate import make_interp_spline  # here: a command that integrates nothing does without

        return np.diff(make_interp_spline(at, identity, k=3).antiderivative()(edges), axis=0)
    legendre = np.polynomial.legendre
    powers = [legendre.legval(2 * edges - 1, legendre.legint(row)) / 2 for row in identity]
    return np.diff(np.array(powers).T, axis=0) @ np.linalg.inv(legendre.legvander(2 * at - 1, len(at) - 1))
