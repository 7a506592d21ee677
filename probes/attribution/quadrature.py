"""Nodes where the integrand bends: how one prompt's integral over [0, 1] is taken with as few nodes as it needs.

A node costs a forward and a backward pass, and gives two things: the integrand, and the metric M itself. Between two
nodes the integrand must therefore integrate to a difference that is known. The rule begins with the nodes of
Gauss–Legendre, and while something is missed it halves the interval that misses most. All nodes stay in use: from then
on the weights are those of the cubic spline through them (not-a-knot), so they depend on the places of the nodes alone.

The error estimate is Σ over intervals |what the rule says − what M says|. Where a narrow interval misses most, M jumps
(a router chooses another expert), and a prompt gets no more nodes: none integrate a jump. A cubic spline rings beside a
jump; where a linear one misses less, the weights are its.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from probes.attribution.forwards import Floats

#: Errors of intervals cancel in the sum; they may be this many times as large as what the sum may miss.
CANCEL = 3.0
#: Where an interval narrower than this misses most, the metric jumps there.
NARROW = 1 / 256
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

    def wanted(self) -> tuple[float, ...]:
        """The nodes that it needs next; none where it is done, or more would not help."""
        if not self.known:
            return tuple(gauss_legendre(self.nodes)[0].tolist())
        _, misses = self._rule()
        edges = np.array([0.0, *sorted(self.known), 1.0])
        error = float(np.abs(misses).sum())
        if abs(misses.sum()) <= self.allowed and error <= max(CANCEL * self.allowed, self.floor):
            return ()
        worst = int(np.abs(misses).argmax())
        jumps = edges[worst + 1] - edges[worst] < NARROW
        if jumps or len(self.known) >= self.most or not np.isfinite(error):
            return ()
        return (float(edges[worst] + edges[worst + 1]) / 2,)

    def weights(self) -> dict[float, float]:
        """The weight of every known node."""
        at = np.array(sorted(self.known))
        return dict(zip(at.tolist(), self._rule()[0].sum(0).tolist(), strict=True))

    def _rule(self) -> tuple[Floats, Floats]:
        """The weights by interval, and what each interval misses: what the rule says less what M says."""
        at = np.array(sorted(self.known))
        metric, slope = np.array([self.known[alpha] for alpha in at.tolist()]).T
        change = np.diff([self.start, *metric, self.end])
        begins = len(at) == self.nodes or len(at) < _CUBIC
        rules = [by_interval(at, degree) for degree in ([len(at) - 1] if begins else [3, 1])]
        return min(((rule, rule @ slope - change) for rule in rules), key=lambda found: np.abs(found[1]).sum())


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
