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

Side = Literal["left", "right", "two_sided"]

#: The share of the dimension that the fixed-fraction version keeps on each side.
FIXED_FRACTION = 0.10
#: Above this null there is no room left for SSA to say anything.
CEILING = 0.95
#: Singular values below this share of the largest count as zero: a float64 Gram of float32 reads resolves no smaller.
_ZERO = 1e-7
_CHUNK = 8192


@dataclass(frozen=True)
class Decomposition:
    """The singular values of W (m × n) and its singular vectors on the smaller side, float64."""

    weight: Float[Tensor, "m n"]
    sigma: Float[Tensor, " r"]  # descending, r = min(m, n)
    near: Float[Tensor, "r r"]  # left singular vectors of a wide W (m ≤ n), right ones of a tall W

    @property
    def wide(self) -> bool:
        """Whether the left side is the smaller one."""
        return self.weight.shape[0] <= self.weight.shape[1]

    @property
    def rank(self) -> int:
        """How many directions W has; at least 1, so that a zero matrix has a subspace to speak of."""
        return max(1, int((_inverse(self.sigma) > 0).sum()))


@dataclass(frozen=True)
class Alignment:
    """SSA of one module, on one side, at one ε."""

    side: Side
    epsilon: float  # NaN for the fixed fraction
    k: int  # directions of W kept (on each side, if two-sided)
    dim: int  # out of this many: m left, n right, min(m, n) two-sided
    ssa: float  # ‖Π_k T‖_F / ‖T‖_F, in [0, 1]; 0 where T is zero
    ssa_null: float  # √p, what a T with no direction would score
    kappa: float  # (ssa² − p)/(1 − p): 0 at the null, 1 inside the subspace
    ssa_z: float  # distance of ssa² from p in standard deviations of the rotation null
    at_ceiling: bool  # p > 0.95


@dataclass(frozen=True)
class Energies:
    """How T's energy lies along the singular directions of W; shares of ‖T‖², float64."""

    left: Float[Tensor, " r"]  # ‖u_iᵀT‖²
    right: Float[Tensor, " r"]  # ‖T v_j‖²
    both: Float[Tensor, "r r"]  # (u_iᵀ T v_j)²
    spectrum: Float[Tensor, " r"]  # T's own squared singular values, ascending


def decompose(weight: Float[Tensor, "m n"]) -> Decomposition:
    """Singular values and near-side vectors of `weight`, from the float64 Gram of its smaller side."""
    w = weight if weight.shape[0] <= weight.shape[1] else weight.T
    values, vectors = torch.linalg.eigh(gram(w, w))
    return Decomposition(weight, values.flip(0).clamp(min=0).sqrt(), vectors.flip(1))


def k_of(decomposition: Decomposition, epsilon: float) -> int:
    """k(ε) = min{k : ‖W − Π_k W‖_F ≤ ε‖W‖_F}, at least 1 and at most the rank."""
    energy = decomposition.sigma.pow(2)
    tail = energy.flip(0).cumsum(0).flip(0)  # of what is left before each direction is kept
    return min(decomposition.rank, max(1, int((tail > epsilon**2 * energy.sum()).sum())))


def fixed_k(decomposition: Decomposition, dim: int, fraction: float = FIXED_FRACTION) -> int:
    """That share of `dim` directions, at least 1 and at most the rank."""
    return min(decomposition.rank, max(1, round(fraction * dim)))


def left_basis(decomposition: Decomposition, k: int) -> Float[Tensor, "m k"]:
    """The k leading left singular vectors, float32; a direction with no singular value is a column of zeros."""
    near = decomposition.near[:, :k]
    if decomposition.wide:
        return near.float()
    return (decomposition.weight.double() @ near * _inverse(decomposition.sigma[:k])).float()


def align(
    weight: Decomposition | Float[Tensor, "m n"],
    delta: Float[Tensor, "m n"],
    epsilons: Sequence[float] = (0.01, 0.05, 0.1),
    fixed_fraction: float = FIXED_FRACTION,
) -> list[Alignment]:
    """SSA of T = `delta` left, right and two-sided at every ε and at the fixed fraction, out of one decomposition of W.

    The fixed fraction keeps that share of m left, of n right and of min(m, n) on each side two-sided, but never more
    directions than W has: a head's slice (d_h × d) with d_h < 0.1 d keeps all d_h, and its null is √(d_h/d).
    The null's p is k/m left, k/n right and k²/(mn) two-sided. T = 0 scores 0 everywhere (SSA, κ and z), never NaN.
    """
    decomposition = weight if isinstance(weight, Decomposition) else decompose(weight)
    return align_energies(decomposition, energies_along(decomposition, delta), epsilons, fixed_fraction)


def align_energies(
    decomposition: Decomposition,
    energies: Energies,
    epsilons: Sequence[float],
    fixed_fraction: float = FIXED_FRACTION,
) -> list[Alignment]:
    """`align`, where the energies are at hand."""
    m, n = decomposition.weight.shape
    cuts = [(epsilon, [k_of(decomposition, epsilon)] * 3) for epsilon in epsilons]
    fixed = [fixed_k(decomposition, dim, fixed_fraction) for dim in (m, n, min(m, n))]
    cuts.append((math.nan, fixed))
    found = []
    for epsilon, (k_left, k_right, k_both) in cuts:
        found += [
            _alignment("left", epsilon, k_left, m, energies.left[:k_left], (k_left, m), (n, n), energies.spectrum),
            _alignment("right", epsilon, k_right, n, energies.right[:k_right], (m, m), (k_right, n), energies.spectrum),
            _alignment(
                "two_sided",
                epsilon,
                k_both,
                min(m, n),
                energies.both[:k_both, :k_both],
                (k_both, m),
                (k_both, n),
                energies.spectrum,
            ),
        ]
    return found


def energies_along(decomposition: Decomposition, delta: Float[Tensor, "m n"]) -> Energies:
    """T's energy along W's singular directions, from three Grams on the smaller side (exact, no SVD of T or far side).

    Wide: H = TTᵀ, C = TWᵀ give ‖u_iᵀT‖² = (UᵀHU)_ii, ‖Tv_j‖² = ‖Cu_j‖²/λ_j and u_iᵀTv_j = (UᵀCU)_ij/σ_j; a tall W is
    the same with its sides exchanged.
    """
    w, t, q = decomposition.weight, delta, decomposition.near
    if not decomposition.wide:
        w, t = w.T, t.T
    own, cross = gram(t, t), gram(t, w)
    total = own.trace().clamp(min=torch.finfo(torch.float64).tiny)
    inverse = _inverse(decomposition.sigma)
    turned = cross @ q
    near = (q * (own @ q)).sum(0) / total
    far = turned.pow(2).sum(0) * inverse.pow(2) / total
    both = (q.T @ turned * inverse).pow(2) / total
    left, right = (near, far) if decomposition.wide else (far, near)
    spectrum = torch.linalg.eigvalsh(own).clamp(min=0)
    return Energies(left, right, both if decomposition.wide else both.T, spectrum)


def gram(left: Float[Tensor, "a n"], right: Float[Tensor, "b n"]) -> Float[Tensor, "a b"]:
    """left rightᵀ in float64, summed over pieces of the long side, so that no whole matrix is copied."""
    total = left.new_zeros(left.shape[0], right.shape[0], dtype=torch.float64)
    for a, b in zip(left.split(_CHUNK, dim=1), right.split(_CHUNK, dim=1), strict=True):
        total.addmm_(a.double(), b.double().T)
    return total


def _alignment(
    side: Side,
    epsilon: float,
    k: int,
    dim: int,
    kept: Tensor,
    rows: tuple[int, int],
    cols: tuple[int, int],
    spectrum: Float[Tensor, " r"],
) -> Alignment:
    p = rows[0] * cols[0] / (rows[1] * cols[1])
    if float(spectrum.sum()) == 0:
        return Alignment(side, epsilon, k, dim, 0.0, math.sqrt(p), 0.0, 0.0, p > CEILING)
    share = min(1.0, max(0.0, float(kept.sum())))
    deviation = math.sqrt(_rotation_variance(rows, cols, spectrum))
    kappa = (share - p) / (1 - p) if p < 1 else 0.0
    z = (share - p) / deviation if deviation > 1e-12 else 0.0
    return Alignment(side, epsilon, k, dim, math.sqrt(share), math.sqrt(p), kappa, z, p > CEILING)


def _rotation_variance(rows: tuple[int, int], cols: tuple[int, int], spectrum: Float[Tensor, " r"]) -> float:
    """Variance of ‖P T Q‖²/‖T‖² when T = U S Vᵀ keeps S and U, V are uniformly random rotations (closed form).

    P, Q project on k of m and k' of n directions; one side alone is the case k' = n. With M = UᵀPU and N = VᵀQV,
    E[X²] = Σ_a s_a⁴ E[M_aa²]E[N_aa²] + Σ_{a≠b} s_a²s_b² (E[M_aa M_bb]E[N_aa N_bb] + 2 E[M_ab²]E[N_ab²]), over (Σ s²)².
    """
    (own_m, pair_m, cross_m), (own_n, pair_n, cross_n) = _projection_moments(*rows), _projection_moments(*cols)
    concentration = float(spectrum.pow(2).sum() / spectrum.sum().pow(2))  # 1 / participation ratio
    p = rows[0] * cols[0] / (rows[1] * cols[1])
    second = own_m * own_n * concentration + (pair_m * pair_n + 2 * cross_m * cross_n) * (1 - concentration)
    return max(0.0, second - p * p)


def _projection_moments(k: int, m: int) -> tuple[float, float, float]:
    """E[M_aa²], E[M_aa M_bb], E[M_ab²] (a ≠ b) of a uniformly rotated projection on k of m directions."""
    own = k * (k + 2) / (m * (m + 2))
    if m == 1:
        return own, own, 0.0
    return own, (k * k - m * own) / (m * (m - 1)), (k - m * own) / (m * (m - 1))


def _inverse(sigma: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    floor = _ZERO * float(sigma.max()) if len(sigma) else 0.0
    return torch.where(sigma > floor, 1 / sigma.clamp(min=torch.finfo(torch.float64).tiny), torch.zeros_like(sigma))
