"""How much two tuning vectors of one matrix share of their leading directions.

Principal angles between subspaces: Björck & Golub 1973. Each number has the mean that randomly rotated subspaces give.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tv.measures.decomposition import eigenvectors, gram

#: Singular values below this share of the largest count as zero: a float64 Gram of float32 reads resolves no smaller.
_ZERO = 1e-7


@dataclass(frozen=True)
class Directions:
    """The singular directions of a T (m × n) on its smaller side, float64, in descending order."""

    shape: tuple[int, int]
    delta_gram: Float[Tensor, "d d"]  # TTᵀ of a wide T (m ≤ n), TᵀT of a tall one; d = min(m, n)
    near: Float[Tensor, "d d"]  # its eigenvectors: left singular vectors of a wide T, right ones of a tall T
    sigma: Float[Tensor, " d"]

    @property
    def rank(self) -> int:
        """How many directions T has; 0 where it is zero."""
        return int((self.sigma > _ZERO * self.sigma.max()).sum())

    def k(self, fraction: float) -> int:
        """That share of the smaller dimension, at least 1, never more directions than T has."""
        return min(self.rank, max(1, round(fraction * min(self.shape))))


@dataclass(frozen=True)
class Angles:
    """Principal angles between the leading subspaces of A and B, on one side."""

    overlap: float  # mean cos² of the min(k_a, k_b) angles: 0 orthogonal, 1 one inside the other
    overlap_null: float  # max(k_a, k_b)/dim, what independently rotated subspaces give
    overlap_lift: float  # overlap/overlap_null
    overlap_kappa: float  # (overlap − null)/(1 − null): a lift has less room above a larger null, κ ends at 1 for all
    overlap_z: float  # distance from the null in its standard deviations; 0 where a subspace is the whole space
    largest_angle_cos: float  # cosine of the largest angle: 1 only if one subspace lies inside the other


@dataclass(frozen=True)
class Inside:
    """How much of one T lies in the leading subspace of another, on one side."""

    ssa: float  # ‖Π T‖/‖T‖
    ssa_null: float  # √(k/dim)
    ssa_z: float  # distance of ssa² from k/dim in standard deviations of the rotation null, which keeps T's spectrum


@dataclass(frozen=True)
class Overlap:
    """What two tuning vectors A and B of one matrix share; left is the output side, right the input side."""

    k_a: int
    k_b: int
    left: Angles
    right: Angles
    left_a_in_b: Inside
    left_b_in_a: Inside
    right_a_in_b: Inside
    right_b_in_a: Inside


def directions(delta: Float[Tensor, "m n"]) -> Directions:
    """Singular values and near-side vectors, from the float64 Gram of the smaller side."""
    near = _near(delta)
    delta_gram = gram(near, near)
    values, vectors = eigenvectors(delta_gram)
    return Directions((delta.shape[0], delta.shape[1]), delta_gram, vectors.flip(1), values.flip(0).clamp(min=0).sqrt())


def cross_gram(a: Float[Tensor, "m n"], b: Float[Tensor, "m n"]) -> Float[Tensor, "d d"]:
    """ABᵀ of wide matrices, AᵀB of tall ones, float64."""
    return gram(_near(a), _near(b))


def overlap(a: Directions, b: Directions, cross: Float[Tensor, "d d"], fraction: float) -> Overlap | None:
    """What A and B share of their leading `fraction` × min(m, n) directions; None where one of them is zero.

    `cross` is their `cross_gram`. The far side is never formed: with near vectors Q, far ones are TᵀQ/σ, so that
    V_aᵀV_b = (Q_aᵀ C Q_b)/(σ_a σ_b) and ‖A V_b‖ = ‖C Q_b/σ_b‖.
    """
    k_a, k_b = a.k(fraction), b.k(fraction)
    if not k_a or not k_b:
        return None
    m, n = a.shape
    q_a, q_b = a.near[:, :k_a], b.near[:, :k_b]
    far_a, far_b = q_a / a.sigma[:k_a], q_b / b.sigma[:k_b]
    near_dim, far_dim = (m, n) if m <= n else (n, m)
    near = (
        _angles(q_a.T @ q_b, near_dim),
        _inside(_energy(q_b, a.delta_gram), a, k_b, near_dim),
        _inside(_energy(q_a, b.delta_gram), b, k_a, near_dim),
    )
    far = (
        _angles(far_a.T @ cross @ far_b, far_dim),
        _inside(float((cross @ far_b).pow(2).sum()), a, k_b, far_dim),
        _inside(float((cross.T @ far_a).pow(2).sum()), b, k_a, far_dim),
    )
    left, right = (near, far) if m <= n else (far, near)
    return Overlap(k_a, k_b, left[0], right[0], left[1], left[2], right[1], right[2])


def component_products(a: Directions, b: Directions, cross: Float[Tensor, "d d"]) -> float:
    """Σ xᵢ², where xᵢ = σᵢ uᵢᵀ B vᵢ is what each singular component of A adds to ⟨A, B⟩; the larger of A's and B's.

    If the components kept their directions and had random signs, ⟨A, B⟩ = Σ xᵢ would have this variance.
    """
    own, other = ((d.near.T @ cross @ d.near).diagonal().pow(2).sum() for d in (a, b))
    return float(torch.maximum(own, other))


def _near(delta: Float[Tensor, "m n"]) -> Float[Tensor, "d l"]:
    return delta if delta.shape[0] <= delta.shape[1] else delta.T


def _energy(basis: Float[Tensor, "d k"], delta_gram: Float[Tensor, "d d"]) -> float:
    """‖basisᵀ T‖²."""
    return float((basis * (delta_gram @ basis)).sum())


def _angles(cosines: Float[Tensor, "k_a k_b"], dim: int) -> Angles:
    """Variance of tr(PQ) for projectors on k and l of m directions: 2kl(m − k)(m − l)/(m²(m − 1)(m + 2))."""
    (k, l), m = cosines.shape, dim  # noqa: E741
    singular = torch.linalg.svdvals(cosines).clamp(max=1)
    mean, null = float(singular.pow(2).mean()), max(k, l) / m
    variance = 2 * k * l * (m - k) * (m - l) / (m**2 * (m - 1) * (m + 2)) if m > 1 else 0.0
    deviation = math.sqrt(variance) / min(k, l)
    kappa = (mean - null) / (1 - null) if null < 1 else 0.0
    z = (mean - null) / deviation if deviation else 0.0
    return Angles(mean, null, mean / null, kappa, z, float(singular.min()))


def _inside(energy: float, inner: Directions, k: int, m: int) -> Inside:
    """Variance of ‖ΠT‖²/‖T‖² under rotation: 2p(1 − p)/(m + 2) · (m/PR − 1)/(m − 1), PR = (Σσ²)²/Σσ⁴."""
    spectrum = inner.sigma.pow(2)
    total, p = float(spectrum.sum()), k / m
    share = min(1.0, energy / total)
    concentration = float(spectrum.pow(2).sum()) / total**2
    variance = 2 * p * (1 - p) / (m + 2) * (m * concentration - 1) / (m - 1) if m > 1 else 0.0
    z = (share - p) / math.sqrt(variance) if variance > 1e-24 else 0.0
    return Inside(math.sqrt(share), math.sqrt(p), z)
