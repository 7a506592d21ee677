"""What SSA² would be for a T without the property in question: its mean and variance, by the null's name.

- `rotation`: T keeps its singular values and is turned at random on both sides (the default; closed form)
- `gaussian`: entries independent and of one size (closed form; at the sizes of a language model its deviation is so
  small that everything is significant)
- `row_scale`: T keeps the norms of its rows, each of which points in a random direction (closed form): a few output
  neurons that moved much are not by themselves alignment
- `shuffle`: T's entries in a random order, drawn
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tv.measures.decomposition import Decomposition, Energies, energies_along, gram, left_basis
from tv.runtime.registry import Registry

Side = Literal["left", "right", "two_sided"]
_ROWS = 4096  # taken to float64 at a time


@dataclass(frozen=True)
class Kept:
    """A subspace pair: the directions of W that are kept on each side; on a side that does not count, all of them."""

    side: Side
    left: int  # of m
    right: int  # of n

    def energy(self, energies: Energies) -> float:
        """SSA² of T: the share of its energy inside."""
        if self.side == "left":
            return float(energies.left[: self.left].sum())
        if self.side == "right":
            return float(energies.right[: self.right].sum())
        return float(energies.both[: self.left, : self.right].sum(dtype=torch.float64))


@dataclass(frozen=True)
class Draws:
    """How an empirical null is drawn."""

    n: int = 20
    seed: int = 0


#: Mean and variance of SSA².
Moments: TypeAlias = tuple[float, float]
Null: TypeAlias = Callable[[Decomposition, Tensor, Energies, Sequence[Kept], Draws], list[Moments]]

#: The nulls by name.
NULLS: Registry[Null] = Registry("null", "tv.measures")


def null(name: str) -> Callable[[Null], Null]:
    """A decorator: the function gives mean and variance of SSA² under the null of this name.

    Args:
        name: What `tv.ssa(null=)`, `--null` and the column `null` call it.

    Returns:
        A decorator that leaves the function as it is. The function takes the decomposition of W (m × n), T (m × n), the
        energies of T along W's singular vectors, the subspaces and how to draw, and returns (mean, variance) of each
        subspace.

    Examples:
        >>> "rotation" in NULLS
        True
    """
    return NULLS.register(name)


@null("rotation")
def rotation(
    decomposition: Decomposition, delta: Float[Tensor, "m n"], energies: Energies, kept: Sequence[Kept], draws: Draws
) -> list[Moments]:
    """T = U S Vᵀ keeps S, and U and V are uniformly random rotations.

    With P, Q the two projections, M = UᵀPU and N = VᵀQV, E[X²] = Σ_a s_a⁴ E[M_aa²]E[N_aa²] + Σ_{a≠b} s_a²s_b²
    (E[M_aa M_bb]E[N_aa N_bb] + 2 E[M_ab²]E[N_ab²]), over (Σs²)²; a side that does not count has the whole space kept.
    """
    m, n = decomposition.weight.shape
    concentration = energies.concentration
    moments = []
    for each in kept:
        (square_m, pair_m, cross_m), (square_n, pair_n, cross_n) = _projection(each.left, m), _projection(each.right, n)
        mean = each.left * each.right / (m * n)
        second = square_m * square_n * concentration + (pair_m * pair_n + 2 * cross_m * cross_n) * (1 - concentration)
        moments.append((mean, max(0.0, second - mean**2)))
    return moments


@null("gaussian")
def gaussian(
    decomposition: Decomposition, delta: Float[Tensor, "m n"], energies: Energies, kept: Sequence[Kept], draws: Draws
) -> list[Moments]:
    """SSA² ~ Beta(kk'/2, (mn − kk')/2) with k of m and k' of n directions kept."""
    m, n = decomposition.weight.shape
    means = [each.left * each.right / (m * n) for each in kept]
    return [(mean, 2 * mean * (1 - mean) / (m * n + 2)) for mean in means]


@null("row_scale")
def row_scale(
    decomposition: Decomposition, delta: Float[Tensor, "m n"], energies: Energies, kept: Sequence[Kept], draws: Draws
) -> list[Moments]:
    """Row i of T is d_i x_i with norm d_i and x_i uniform on the sphere, independently.

    With Π on the left and q of n directions on the right, SSA² = Σ_ij Π_ij d_i d_j x_iᵀQx_j over Σd²: its mean is (q/n)
    Σ d_i²Π_ii, its variance Σ_i Π_ii² d_i⁴ Var(x_iᵀQx_i) + 2 Σ_{i≠j} Π_ij² d_i² d_j² q/n², with Σd² = 1.
    """
    m, n = decomposition.weight.shape
    scale = torch.cat([rows.double().pow(2).sum(1) for rows in delta.split(_ROWS)])
    scale = scale / scale.sum().clamp(min=torch.finfo(torch.float64).tiny)
    basis = left_basis(decomposition, max((each.left for each in kept if each.left < m), default=1))
    scaled = basis.T * scale.sqrt().to(basis.dtype)
    along = gram(scaled, scaled)  # UᵀD²U: ‖DΠD‖² without the m × m matrix
    moments = []
    for each in kept:
        if each.left == m:
            inside, together = torch.ones_like(scale), float(scale.pow(2).sum())
        else:
            inside = basis[:, : each.left].pow(2).sum(1, dtype=torch.float64)
            together = float(along[: each.left, : each.left].pow(2).sum())
        apart = float((inside * scale).pow(2).sum())
        q = each.right / n
        variance = apart * 2 * q * (1 - q) / (n + 2) + max(0.0, together - apart) * 2 * each.right / n**2
        moments.append((q * float((inside * scale).sum()), variance))
    return moments


@null("shuffle")
def shuffle(
    decomposition: Decomposition, delta: Float[Tensor, "m n"], energies: Energies, kept: Sequence[Kept], draws: Draws
) -> list[Moments]:
    """T's entries in `draws.n` random orders."""
    generator = torch.Generator().manual_seed(draws.seed)
    shares = torch.zeros(draws.n, len(kept), dtype=torch.float64)
    for i in range(draws.n):
        order = torch.randperm(delta.numel(), generator=generator).to(delta.device)
        drawn = energies_along(decomposition, delta.flatten()[order].view_as(delta))
        shares[i] = torch.tensor([each.energy(drawn) for each in kept], dtype=torch.float64)
    return list(zip(shares.mean(0).tolist(), shares.var(0).tolist(), strict=True))


def _projection(k: int, m: int) -> tuple[float, float, float]:
    """E[M_aa²], E[M_aa M_bb], E[M_ab²] (a ≠ b) of a uniformly rotated projection on k of m directions."""
    square = k * (k + 2) / (m * (m + 2))
    if m == 1:
        return square, square, 0.0
    return square, (k * k - m * square) / (m * (m - 1)), (k - m * square) / (m * (m - 1))
