"""The pretrained subspaces of one matrix, and how a tuning vector's energy lies along them: three Grams, no SVD.

With G = WWᵀ, H = TTᵀ and C = TWᵀ on the smaller side (of a tall W: of Wᵀ and Tᵀ) and G = QΛQᵀ, the near side's
energies are diag(QᵀHQ), the far side's ‖Cq_i‖²/λ_i, and q_iᵀTv_j = (QᵀCQ)_ij/σ_j. All are sums over the long side,
taken in pieces.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import ThreadpoolController
from torch import Tensor

from tv.runtime.products import linear

#: The share of the dimension that the fixed-fraction version keeps on each side.
FIXED_FRACTION = 0.10
#: Singular values below this share of the largest count as zero: a float64 Gram of float32 reads resolves no smaller.
_ZERO = 1e-7
_CHUNK = 2048
_PIECE = 2**17  # entries that are squared at a time: memory for more is fetched anew each time
#: Float32 products are used from this many directions on, where the standard error they leave in SSA² is at most this.
_SINGLE_FROM, _SINGLE_ERROR = 256, 1e-5
#: Leading eigenvectors alone are computed from this size on: below, what that saves is less than an import.
_LEADING_FROM = 384
_BLOCKS, _BLOCK = 12, 128  # of a symmetric product: at most so many, of at least so many rows


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
    """How T's energy lies along the singular directions of W: shares of ‖T‖²; 0 where T is zero.

    Each is computed on first use, as few tables read them all.
    """

    decomposition: Decomposition
    delta: Float[Tensor, "m n"]
    cross: Float[Tensor, "r r"]  # C, float32 where that is enough
    turned: Float[Tensor, "r r"]  # CQ

    @cached_property
    def left(self) -> Float[Tensor, " r"]:
        """‖u_iᵀT‖²."""
        return self._near if self.decomposition.wide else self._far

    @cached_property
    def right(self) -> Float[Tensor, " r"]:
        """‖T v_j‖²."""
        return self._far if self.decomposition.wide else self._near

    @cached_property
    def both(self) -> Float[Tensor, "r r"]:
        """(u_iᵀ T v_j)²."""
        both = self._scaled(linear(self.decomposition.near.to(self.turned.dtype).T, self.turned.T))
        return both if self.decomposition.wide else both.T

    @cached_property
    def diagonal(self) -> Float[Tensor, " r"]:
        """(u_iᵀ T v_i)²."""
        return self._scaled((self.decomposition.near.to(self.turned.dtype) * self.turned).sum(0))

    @cached_property
    def delta_gram(self) -> Float[Tensor, "r r"]:
        """H, float64: T's small singular values come from it."""
        return gram(self._near_delta, self._near_delta)

    @cached_property
    def spectrum(self) -> Float[Tensor, " r"]:
        """T's squared singular values, ascending."""
        return eigenvalues(self.delta_gram).clamp(min=0)

    @cached_property
    def total(self) -> float:
        """‖T‖²."""
        return square_norm(self.delta)

    @cached_property
    def concentration(self) -> float:
        """Σs⁴/(Σs²)² of T's singular values: one over its participation ratio; 0 where T is zero."""
        return float(self._shares.pow(2).sum(dtype=torch.float64))

    @property
    def _near_delta(self) -> Float[Tensor, "r l"]:
        return self.delta if self.decomposition.wide else self.delta.T

    @property
    def _size(self) -> float:
        return self.total or 1.0

    @cached_property
    def _shares(self) -> Float[Tensor, "r r"]:
        """H/‖T‖² in the dtype of C."""
        if self.cross.dtype == torch.float64 or "delta_gram" in vars(self):
            return (self.delta_gram / self._size).to(self.cross.dtype)
        scaled = self._near_delta / math.sqrt(self._size)  # first: squares may underflow
        return gram(scaled, scaled, torch.float32)

    @cached_property
    def _near(self) -> Float[Tensor, " r"]:
        q = self.decomposition.near.to(self.cross.dtype)
        return (q * linear(self._shares, q.T)).sum(0, dtype=torch.float64)

    @cached_property
    def _far(self) -> Float[Tensor, " r"]:
        return self.turned.double().pow(2).sum(0) * self.decomposition.inverse.pow(2) / self._size

    def _scaled(self, along: Float[Tensor, "... r"]) -> Float[Tensor, "... r"]:
        inverse = self.decomposition.inverse.to(along.dtype)
        return along.mul_(inverse).div_(math.sqrt(self._size)).pow_(2)  # in this order: squares may underflow


def decompose(weight: Float[Tensor, "m n"]) -> Decomposition:
    """Singular values and near-side vectors of `weight`, from the float64 Gram of its smaller side."""
    w = weight if weight.shape[0] <= weight.shape[1] else weight.T
    values, vectors = eigenvectors(gram(w, w))
    return Decomposition(weight, values.flip(0).clamp(min=0).sqrt(), vectors.flip(1).contiguous())


def energies_along(decomposition: Decomposition, delta: Float[Tensor, "m n"]) -> Energies:
    """T's energy along W's singular directions, left, right and both.

    C and its products, and H for energies, are float32 where that is enough: rounding leaves about eps·rms(σ)/σ_i of
    ‖T‖ along far direction i, in random directions, so that a sum of far energy shares s_i has a standard error of
    2·eps·√(Σ s_i (rms(σ)/σ_i)²); above 1e-5 (for even shares, or for those computed) all is float64.
    """
    w, t = decomposition.weight, delta
    if not decomposition.wide:
        w, t = w.T, t.T
    even = torch.full_like(decomposition.sigma, 1 / len(decomposition.sigma))
    if len(even) >= _SINGLE_FROM and _single_error(decomposition, even) <= _SINGLE_ERROR:
        energies = _energies(decomposition, delta, gram(t, w, torch.float32))
        if _single_error(decomposition, energies.right if decomposition.wide else energies.left) <= _SINGLE_ERROR:
            return energies
    return _energies(decomposition, delta, gram(t, w))


def _single_error(decomposition: Decomposition, far: Float[Tensor, " r"]) -> float:
    """The standard error that float32 products leave in SSA² where T's far energy shares are these."""
    spread = decomposition.sigma.pow(2).mean() * (far * decomposition.inverse.pow(2)).sum()
    return 2 * torch.finfo(torch.float32).eps * float(spread.sqrt())


def _energies(decomposition: Decomposition, delta: Float[Tensor, "m n"], cross: Float[Tensor, "r r"]) -> Energies:
    return Energies(decomposition, delta, cross, linear(cross, decomposition.near.T.to(cross.dtype)))


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


def eigenvectors(symmetric: Float[Tensor, "r r"]) -> tuple[Float[Tensor, " r"], Float[Tensor, "r r"]]:
    """Eigenvalues, ascending, and eigenvectors: by numpy's LAPACK on the CPU, where torch's takes up to twice as long.

    Raises:
        RuntimeError: They do not converge.
    """
    if symmetric.device.type != "cpu":
        return torch.linalg.eigh(symmetric)
    with _torchs_threads("numpy"):
        values, vectors = np.linalg.eigh(symmetric.numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


def leading_eigenvectors(
    symmetric: Float[Tensor, "r r"], top: int
) -> tuple[Float[Tensor, " top"], Float[Tensor, "r top"]]:
    """The `top` largest eigenvalues, descending, and their eigenvectors: a quarter of the work of all of them."""
    first = max(0, len(symmetric) - top)
    if symmetric.device.type != "cpu" or len(symmetric) < _LEADING_FROM:
        values, vectors = torch.linalg.eigh(symmetric)
        return values[first:].flip(0), vectors[:, first:].flip(1)
    from scipy.linalg import eigh  # only for this, and slow to import

    with _torchs_threads("scipy"):
        values, vectors = map(torch.from_numpy, eigh(symmetric.numpy(), subset_by_index=[first, len(symmetric) - 1]))
    return values.flip(0), vectors.flip(1)


def _torchs_threads(package: str) -> AbstractContextManager[object]:
    """As many threads as torch has: the BLAS of an imported package knows nothing of torch's, nor a worker's share."""
    return _threads_of(package).limit(limits=torch.get_num_threads(), user_api="blas")


@cache
def _threads_of(package: str) -> ThreadpoolController:
    """What is loaded once the package is; looking for it takes milliseconds."""
    return ThreadpoolController()


def eigenvalues(symmetric: Float[Tensor, "r r"]) -> Float[Tensor, " r"]:
    """The eigenvalues alone, ascending."""
    return torch.linalg.eigvalsh(symmetric)


def square_norm(tensor: Float[Tensor, "m n"]) -> float:
    """‖·‖² in float64, a piece at a time."""
    band = max(1, _PIECE // max(1, tensor.shape[1]))
    return float(torch.stack([rows.double().pow(2).sum() for rows in tensor.split(band)]).sum())


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
            _add_product(total, a.to(dtype), b.to(dtype))
        return total
    size = max(_BLOCK, -(-len(left) // _BLOCKS))
    for piece in left.split(_CHUNK, dim=1):
        a = piece.to(dtype)
        for start in range(0, len(left), size):
            rows = a[start : start + size]
            _add_product(total[start : start + size, start:], rows, a[start:])
    for start in range(size, len(left), size):
        total[start : start + size, :start] = total[:start, start : start + size].T
    return total


def _add_product(total: Float[Tensor, "a b"], left: Float[Tensor, "a n"], right: Float[Tensor, "b n"]) -> None:
    if total.dtype == torch.float32:
        for sums, rows in zip(total.split(_CHUNK // 2), left.split(_CHUNK // 2), strict=True):
            sums += linear(rows, right)  # made beside them, so not all at once
    else:
        total.addmm_(left, right.T)
