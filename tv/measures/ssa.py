"""Subspace alignment (SSA) of a tuning vector with the pretrained weights, and what a T with no direction would score.

Source: arXiv 2510.09359 (SSA of tuning vectors); the ratio and its ε are arXiv 2502.04959, eq. 5–6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tv.measures.decomposition import FIXED_FRACTION, Decomposition, Energies, decompose, energies_along, fixed_k, k_of
from tv.measures.nulls import Draws, Kept, Moments, Null, Side, rotation

Rule = Literal["tail", "energy", "fixed"]
RULES: tuple[Rule, ...] = ("tail", "energy", "fixed")
#: Above this null there is no room left for SSA to say anything.
CEILING = 0.95
_CURVE_POINTS = 200


@dataclass(frozen=True)
class Cut:
    """How many directions of W count as its subspace.

    `tail`: the fewest that leave a relative error ‖W − Π_k W‖/‖W‖ of at most ε. `energy`: the fewest that hold a share
    τ of Σσ², which is the tail rule at ε = √(1 − τ). `fixed`: a share of the dimension, of m left, of n right and of
    min(m, n) on each side two-sided, but never more than W has: a head's slice (d_h × d) with d_h < 0.1 d keeps d_h.
    """

    rule: Rule
    level: float  # ε, τ, or the fraction

    def keeps(self, decomposition: Decomposition) -> list[Kept]:
        """What is kept left, right and two-sided."""
        m, n = decomposition.weight.shape
        if self.rule == "fixed":
            left, right, both = (fixed_k(decomposition, dim, self.level) for dim in (m, n, min(m, n)))
        else:
            epsilon = self.level if self.rule == "tail" else math.sqrt(1 - self.level)
            left = right = both = k_of(decomposition, epsilon)
        return [Kept("left", left, n), Kept("right", m, right), Kept("two_sided", both, both)]


@dataclass(frozen=True)
class Alignment:
    """SSA of one module, on one side, at one cut."""

    side: Side
    k_rule: Rule
    level: float
    epsilon: float  # the level of the tail rule; NaN for the others
    k: int  # directions of W kept (on each side, if two-sided)
    dim: int  # out of this many: m left, n right, min(m, n) two-sided
    ssa: float  # ‖Π_k T‖_F / ‖T‖_F, in [0, 1]; 0 where T is zero
    ssa_null: float  # √p, what a T with no direction would score
    kappa: float  # (ssa² − p)/(1 − p): 0 at the null, 1 inside the subspace
    ssa_z: float  # distance of ssa² from p in standard deviations of the null
    at_ceiling: bool  # p > 0.95


@dataclass(frozen=True)
class Curve:
    """SSA(k) of one module on one side, for k = 1 … rank of W (evenly thinned to 200 points)."""

    side: Side
    dim: int
    k: list[int]
    ssa: list[float]
    ssa_null: list[float]  # √p(k): √(k/m), √(k/n), k/√(mn)
    area: float  # ∫ (SSA − null) d(k/dim) from 0 to the rank, by trapezoids over every k; 0 at the null, and for T = 0


def cuts_of(epsilons: Sequence[float], fixed_fraction: float = FIXED_FRACTION) -> tuple[Cut, ...]:
    """The tail rule at each ε, then the fixed fraction."""
    return (*(Cut("tail", epsilon) for epsilon in epsilons), Cut("fixed", fixed_fraction))


def align(
    weight: Decomposition | Float[Tensor, "m n"],
    delta: Float[Tensor, "m n"],
    epsilons: Sequence[float] = (0.01, 0.05, 0.1),
    fixed_fraction: float = FIXED_FRACTION,
) -> list[Alignment]:
    """SSA of T = `delta` left, right and two-sided at every ε and at the fixed fraction, out of one decomposition of W.

    Beside the rotation null, whose p is k/m left, k/n right and k²/(mn) two-sided. T = 0 scores 0 everywhere (SSA, κ
    and z), never NaN.
    """
    decomposition = weight if isinstance(weight, Decomposition) else decompose(weight)
    return align_energies(decomposition, delta, energies_along(decomposition, delta), cuts_of(epsilons, fixed_fraction))


def align_energies(
    decomposition: Decomposition,
    delta: Float[Tensor, "m n"],
    energies: Energies,
    cuts: Sequence[Cut],
    null: Null = rotation,
    draws: Draws = Draws(),  # noqa: B008 (frozen)
    sides: Sequence[Side] = ("left", "right", "two_sided"),
) -> list[Alignment]:
    """`align`, where the energies are at hand, at any cuts and beside any null, on the sides that are wanted."""
    wanted = [(cut, kept) for cut in cuts for kept in cut.keeps(decomposition) if kept.side in sides]
    moments = null(decomposition, delta, energies, [kept for _, kept in wanted], draws)
    shape = tuple(decomposition.weight.shape)
    return [_alignment(cut, kept, shape, energies, at) for (cut, kept), at in zip(wanted, moments, strict=True)]


def curves(decomposition: Decomposition, energies: Energies, sides: Sequence[Side]) -> list[Curve]:
    """SSA(k) for every k, beside √p(k), on the sides that are wanted."""
    m, n = decomposition.weight.shape
    shares = {
        "left": (m, lambda: energies.left.cumsum(0)),
        "right": (n, lambda: energies.right.cumsum(0)),
        "two_sided": (min(m, n), lambda: energies.both.cumsum(0).cumsum(1).diagonal()),
    }
    k = torch.arange(1, decomposition.rank + 1)
    shown = torch.linspace(0, len(k) - 1, min(len(k), _CURVE_POINTS)).round().long()
    found = []
    for side in sides:
        dim, share = shares[side]
        ssa = share()[: len(k)].clamp(0, 1).sqrt().double().cpu()
        null = k.double() / math.sqrt(m * n) if side == "two_sided" else (k.double() / dim).sqrt()
        above = torch.cat([torch.zeros(1, dtype=torch.float64), ssa - null])
        area = float(torch.trapezoid(above, dx=1 / dim)) if energies.total else 0.0
        found.append(Curve(side, dim, k[shown].tolist(), ssa[shown].tolist(), null[shown].tolist(), area))
    return found


def _alignment(cut: Cut, kept: Kept, shape: tuple[int, ...], energies: Energies, moments: Moments) -> Alignment:
    m, n = shape
    k, dim = {"left": (kept.left, m), "right": (kept.right, n), "two_sided": (kept.left, min(m, n))}[kept.side]
    p, deviation = moments[0], math.sqrt(moments[1])
    ssa = kappa = z = 0.0
    if energies.total:
        share = min(1.0, max(0.0, kept.energy(energies)))
        ssa = math.sqrt(share)
        kappa = (share - p) / (1 - p) if p < 1 else 0.0
        z = (share - p) / deviation if deviation > 1e-12 else 0.0
    else:
        p = kept.left * kept.right / (m * n)
    return Alignment(
        side=kept.side,
        k_rule=cut.rule,
        level=cut.level,
        epsilon=cut.level if cut.rule == "tail" else math.nan,
        k=k,
        dim=dim,
        ssa=ssa,
        ssa_null=math.sqrt(p),
        kappa=kappa,
        ssa_z=z,
        at_ceiling=p > CEILING,
    )
