"""The pretrained subspaces of one matrix, and how a tuning vector's energy lies along them: three Grams, no SVD.

With G = WWᵀ, H = TTᵀ and C = TWᵀ on the smaller side (of a tall W: of Wᵀ and Tᵀ) and G = QΛQᵀ, the near side's
energies are diag(QᵀHQ), the far side's ‖Cq_i‖²/λ_i, and q_iᵀTv_j = (QᵀCQ)_ij/σ_j. All are sums over the long side,
taken in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

#: The share of the dimension that the fixed-fraction version keeps on each side.
FIXED_FRACTION = 0.10
#: Singular values below this share of the largest count as zero: a float64 Gram of float32 reads resolves no smaller.
_ZERO = 1e-7
_CHUNK = 2048
#: Float32 products are used from this many directions on, where the standard error they leave in SSA² is at most this.
_SINGLE_FROM, _SINGLE_ERROR = 256, 1e-5
_BLOCKS = 7


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
        """How many directions W has; at least 1, so that a zero matrix has a subspace too."""
        return max(1, int((self.inverse > 0).sum()))

    @cached_property
    def inverse(self) -> Float[Tensor, " r"]:
        """1/σ, and 0 where σ counts as zero."""
        return inverse_of(self.sigma)


@dataclass(frozen=True)
class Energies:
    """How T's energy lies along the singular directions of W: shares of ‖T‖²; 0 where T is zero."""

    left: Float[Tensor, " r"]  # ‖u_iᵀT‖²
    right: Float[Tensor, " r"]  # ‖T v_j‖²
    both: Float[Tensor, "r r"]  # (u_iᵀ T v_j)²
    delta_gram: Float[Tensor, "r r"]  # H, float64
    cross: Float[Tensor, "r r"]  # C

    @property
    def total(self) -> float:
        """‖T‖²."""
        return float(self.delta_gram.trace())

    @property
    def concentration(self) -> float:
        """Σs⁴/(Σs²)² of T's singular values: one over its participation ratio; 0 where T is zero."""
        return float(self.delta_gram.pow(2).sum()) / self.total**2 if self.total else 0.0

    @cached_property
    def spectrum(self) -> Float[Tensor, " r"]:
        """T's squared singular values, ascending."""
        return torch.linalg.eigvalsh(self.delta_gram).clamp(min=0)


def decompose(weight: Float[Tensor, "m n"]) -> Decomposition:
    """Singular values and near-side vectors of `weight`, from the float64 Gram of its smaller side."""
    w = weight if weight.shape[0] <= weight.shape[1] else weight.T
    values, vectors = torch.linalg.eigh(gram(w, w))
    return Decomposition(weight, values.flip(0).clamp(min=0).sqrt(), vectors.flip(1).contiguous())


def energies_along(decomposition: Decomposition, delta: Float[Tensor, "m n"]) -> Energies:
    """T's energy along W's singular directions, left, right and both.

    H is float64, because T's small singular values come from it. C and its products are float32 where that is enough:
    rounding leaves about eps·rms(σ)/σ_i of ‖T‖ along far direction i, in random directions, so that a sum of far energy
    shares s_i has a standard error of 2·eps·√(Σ s_i (rms(σ)/σ_i)²); above 1e-5 (for even shares, or for those computed)
    both are float64.
    """
    w, t = decomposition.weight, delta
    if not decomposition.wide:
        w, t = w.T, t.T
    delta_gram = gram(t, t)
    even = torch.full_like(decomposition.sigma, 1 / len(delta_gram))
    if len(delta_gram) >= _SINGLE_FROM and _single_error(decomposition, even) <= _SINGLE_ERROR:
        energies = _energies(decomposition, delta_gram, gram(t, w, torch.float32))
        if _single_error(decomposition, energies.right if decomposition.wide else energies.left) <= _SINGLE_ERROR:
            return energies
    return _energies(decomposition, delta_gram, gram(t, w))


def _single_error(decomposition: Decomposition, far: Float[Tensor, " r"]) -> float:
    """The standard error that float32 products leave in SSA² where T's far energy shares are these."""
    spread = decomposition.sigma.pow(2).mean() * (far * decomposition.inverse.pow(2)).sum()
    return 2 * torch.finfo(torch.float32).eps * float(spread.sqrt())


def _energies(decomposition: Decomposition, delta_gram: Float[Tensor, "r r"], cross: Float[Tensor, "r r"]) -> Energies:
    q = decomposition.near.to(cross.dtype)
    inverse = decomposition.inverse
    total = delta_gram.trace()
    total = torch.where(total > 0, total, torch.ones_like(total))
    turned = cross @ q
    near = (q * ((delta_gram / total).to(q.dtype) @ q)).sum(0, dtype=torch.float64)
    far = turned.double().pow(2).sum(0) * inverse.pow(2) / total
    both = (q.T @ turned).mul_(inverse.to(q.dtype)).div_(total.sqrt()).pow_(2)  # in this order: squares may underflow
    left, right = (near, far) if decomposition.wide else (far, near)
    return Energies(left, right, both if decomposition.wide else both.T, delta_gram, cross)


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
    scaled = near * decomposition.inverse[:k]
    return torch.cat([(rows.double() @ scaled).float() for rows in decomposition.weight.split(_CHUNK)])


def inverse_of(sigma: Float[Tensor, " r"]) -> Float[Tensor, " r"]:
    """1/σ, and 0 where σ is negligible beside the largest."""
    floor = _ZERO * float(sigma.max()) if len(sigma) else 0.0
    return torch.where(sigma > floor, 1 / sigma.clamp(min=torch.finfo(torch.float64).tiny), torch.zeros_like(sigma))


def gram(
    left: Float[Tensor, "a n"], right: Float[Tensor, "b n"], dtype: torch.dtype = torch.float64
) -> Float[Tensor, "a b"]:
    """left rightᵀ in `dtype`, summed over pieces of the long side, so that no whole matrix is copied.

    Where both are one matrix, the blocks below the diagonal are those above it and are not computed.
    """
    total = left.new_zeros(left.shape[0], right.shape[0], dtype=dtype)
    if left is not right:
        for a, b in zip(left.split(_CHUNK, dim=1), right.split(_CHUNK, dim=1), strict=True):
            total.addmm_(a.to(dtype), b.to(dtype).T)
        return total
    size = -(-len(left) // _BLOCKS)
    for piece in left.split(_CHUNK, dim=1):
        a = piece.to(dtype)
        for start in range(0, len(left), size):
            rows = a[start : start + size]
            total[start : start + size, start:].addmm_(rows, a[start:].T)
    for start in range(size, len(left), size):
        total[start : start + size, :start] = total[:start, start : start + size].T
    return total
