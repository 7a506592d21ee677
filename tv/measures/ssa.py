"""Subspace alignment (SSA) of a tuning vector with the pretrained weights, and what a T with no direction would score.

Source: arXiv 2510.09359 (SSA of tuning vectors); the ratio and its ε are arXiv 2502.04959, eq. 5–6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tv.columns import Column
from tv.errors import InputError, choices
from tv.measures.declared import Row, weight_table
from tv.measures.decomposition import FIXED_FRACTION, Decomposition, Energies, decompose, energies_along, fixed_k, k_of
from tv.measures.nulls import NULLS, Draws, Kept, Moments, Null, Side, rotation
from tv.measures.part import Part

Rule = Literal["tail", "energy", "fixed"]
RULES: tuple[Rule, ...] = ("tail", "energy", "fixed")
EPSILONS = (0.01, 0.05, 0.1)
#: Above this p there is no room left for SSA above its null.
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
    ssa: float  # ‖Π_k T‖_F / ‖T‖_F, in [0, 1]; it, κ and z are NaN where T is zero
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
    ssa: list[float]  # NaN where T is zero
    ssa_null: list[float]  # √p(k): √(k/m), √(k/n), k/√(mn)
    area: float  # ∫ (SSA − null) d(k/dim) from 0 to the rank, by trapezoids over every k; 0 at the null


@weight_table(
    "alignment",
    rows="module or head, side, and how many directions were kept",
    columns=(
        Column("side", "`left` is the output side, `right` the input side; or `two_sided`", "name"),
        Column("k_rule", "what `level` is: `tail`, `energy` or `fixed`", "name"),
        Column("level", "ε, the share of Σσ², or the share of the dimension", "float64"),
        Column("epsilon", "the level where it is a relative error; null for the other rules", "float64"),
        Column("k", "directions of W kept", "int32"),
        Column("dim", "out of so many", "int32"),
        Column("ssa", "‖Π_k T‖/‖T‖; null where T is 0", words="SSA", null="ssa_null", role="weight"),
        Column("ssa_null", "of a T with no preferred direction", words="null"),
        Column("kappa", "(SSA² − null²)/(1 − null²): 0 at the null", words="κ", null=0.0, centre=0.0, role="weight"),
        Column("ssa_z", "SSA² − null² in standard deviations of the null", words="z", null=0.0, centre=0.0),
        Column("at_ceiling", "null² > 0.95: no room is left above it; there is room below", "bool"),
        Column("null", "what `ssa_null` assumes: `rotation`, `gaussian`, `row_scale`, `shuffle`", "name"),
    ),
)
def alignment(
    part: Part,
    *,
    k_rule: Rule = "tail",
    levels: tuple[float, ...] = EPSILONS,
    null: str = "rotation",
    draws: int = 20,
    swap: bool = False,
) -> Iterator[Row]:
    """SSA of a matrix in a block at every level of the rule and at the fixed fraction; with `swap`, the control too."""
    if not part.in_block:
        return
    cuts, sides = cuts_by(k_rule, levels), _sides(part)
    drawn = Draws(draws, part.seed)
    rows = align_energies(part.decomposition, part.delta, part.energies, cuts, NULLS[null], drawn, sides)
    other = part.in_other_layer if swap else None
    swapped = align_energies(other[0], part.delta, other[1], cuts, sides=sides) if other else None
    for i, row in enumerate(rows):
        control = {"ssa_swap": swapped[i].ssa, "ssa_swap_null": swapped[i].ssa_null} if swapped else {}
        yield vars(row) | {"null": null} | control


@weight_table(
    "curve",
    rows="module or head, side and k",
    in_runs=False,
    columns=(
        Column("side", "`left` is the output side, `right` the input side; or `two_sided`", "name"),
        Column("dim", "directions that there are", "int32"),
        Column("area", "∫ (SSA − null) d(k/dim): 0 at the null", null=0.0, centre=0.0),
        Column("k", "directions of W kept", "int32"),
        Column("ssa", "‖Π_k T‖/‖T‖", words="SSA", null="ssa_null"),
        Column("ssa_null", "of a T with no preferred direction", words="null"),
    ),
)
def curve(part: Part) -> Iterator[Row]:
    """SSA(k) of a matrix in a block, up to its rank."""
    for side_curve in curves(part.decomposition, part.energies, _sides(part)) if part.in_block else ():
        at = {"side": side_curve.side, "dim": side_curve.dim, "area": side_curve.area}
        for k, ssa, null in zip(side_curve.k, side_curve.ssa, side_curve.ssa_null, strict=True):
            yield at | {"k": k, "ssa": ssa, "ssa_null": null}


def _sides(part: Part) -> tuple[Side, ...]:
    """A head's slice is as wide as d_head on one side: only its long side says anything."""
    if part.is_whole:
        return ("left", "right", "two_sided")
    return ("left",) if part.module == "o" else ("right",)


def cuts_by(rule: Rule, levels: Sequence[float]) -> tuple[Cut, ...]:
    """The levels of a rule, and the fixed fraction. Raises InputError for an invalid rule or level."""
    if rule not in RULES:
        raise InputError(f"no k rule {rule!r}{choices(rule, RULES)}")
    for level in levels:
        if not 0 < level < 1:
            what = f"a share of the {SHARES[rule]}" if rule in SHARES else "ε is the share of ‖W‖ left out"
            raise InputError(f"{_NAMES[rule]} {level}: {what}, a number between 0 and 1")
    cuts = [Cut(rule, level) for level in levels]
    fixed = Cut("fixed", FIXED_FRACTION)
    return (*cuts, *([] if fixed in cuts else [fixed]))


_NAMES = {"tail": "epsilon", "energy": "energy", "fixed": "fraction"}
#: What a level is a share of, by rule.
SHARES = {"energy": "energy", "fixed": "dimension"}


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

    Beside the rotation null, whose p is k/m left, k/n right and k²/(mn) two-sided. T = 0 has no direction: SSA, κ and z
    are NaN, the null is that of the shape.
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
    """`align` from given energies, at any cuts and beside any null, on the wanted sides."""
    wanted = [(cut, kept) for cut in cuts for kept in cut.keeps(decomposition) if kept.side in sides]
    moments = null(decomposition, delta, energies, [kept for _, kept in wanted], draws)
    shape = tuple(decomposition.weight.shape)
    return [_alignment(cut, kept, shape, energies, at) for (cut, kept), at in zip(wanted, moments, strict=True)]


def curves(decomposition: Decomposition, energies: Energies, sides: Sequence[Side]) -> list[Curve]:
    """SSA(k) for every k, beside √p(k), on the wanted sides."""
    m, n = decomposition.weight.shape
    shares = {
        "left": (m, lambda: energies.left.cumsum(0)),
        "right": (n, lambda: energies.right.cumsum(0)),
        "two_sided": (min(m, n), lambda: energies.both.cumsum(0).cumsum(1).diagonal()),
    }
    k = torch.arange(1, decomposition.rank + 1)
    shown = torch.linspace(0, len(k) - 1, min(len(k), _CURVE_POINTS)).round().long()
    side_curves = []
    for side in sides:
        dim, share = shares[side]
        ssa = share()[: len(k)].clamp(0, 1).sqrt().double().cpu() if energies.total else torch.full((len(k),), math.nan)
        null = k.double() / math.sqrt(m * n) if side == "two_sided" else (k.double() / dim).sqrt()
        above = torch.cat([torch.zeros(1, dtype=torch.float64), ssa - null])
        area = float(torch.trapezoid(above, dx=1 / dim))
        side_curves.append(Curve(side, dim, k[shown].tolist(), ssa[shown].tolist(), null[shown].tolist(), area))
    return side_curves


def _alignment(cut: Cut, kept: Kept, shape: tuple[int, ...], energies: Energies, moments: Moments) -> Alignment:
    m, n = shape
    k, dim = {"left": (kept.left, m), "right": (kept.right, n), "two_sided": (kept.left, min(m, n))}[kept.side]
    p, deviation = moments[0], math.sqrt(moments[1])
    ssa = kappa = z = math.nan
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
