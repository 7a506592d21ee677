"""Methods that look at the singular directions of a matrix T (m × n, y = Tx); float64 inside, float32 out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tv.arithmetic.methods.elementwise import addition, mean
from tv.arithmetic.methods.terms import Merge, Terms, merge_method, weighted
from tv.measures.decomposition import FIXED_FRACTION, decompose, fixed_k, left_basis

#: Directions below this share of the largest are rounding of the float64 Gram that they come from.
_ZERO = 1e-6
Fraction = Annotated[float, Field(gt=0, le=1, description="The share of the dimension that counts as leading")]


@merge_method("tsv-m", otherwise=mean)
def tsv_m(terms: Terms) -> Merge:
    """Task singular vectors, merged: arXiv 2412.00081, Algorithm 1 (TSV-M). Σ λ_i U'_i Σ_i V'_iᵀ.

    Of each of the N vectors the r/N leading directions stay (r = min(m, n)). [U_1 … U_N] is replaced by the nearest
    matrix with orthonormal columns, and so is [V_1 … V_N]; directions that several vectors have in common are shared
    among them. The paper's α is a common λ.
    """
    n = len(terms.deltas)
    k = max(1, min(terms.weight.shape) // n)
    lefts, sigmas, rights = zip(*(svd(delta, k) for delta in terms.deltas), strict=True)
    left, right = _orthonormal(torch.cat(lefts, 1)), _orthonormal(torch.cat(rights, 1))
    ranks = [len(sigma) for sigma in sigmas]
    parts = [
        ((u * sigma) @ v.T).float()
        for u, sigma, v in zip(left.split(ranks, 1), sigmas, right.split(ranks, 1), strict=True)
    ]
    return weighted(parts)


@merge_method("iso-c", otherwise=mean)
def iso_c(terms: Terms) -> Merge:
    """The sum with a flat spectrum: arXiv 2502.04959 §5 (Iso-C). σ̄ U Vᵀ of Σ λ_i T_i = U Σ Vᵀ, σ̄ the mean of Σ.

    The paper's α is a common λ. Only directions that the sum has count: of a low-rank sum neither the mean nor the
    result reaches beyond them. A sweep over a common λ decomposes once; another ratio of the λ_i decomposes anew.
    """
    add = weighted(terms.deltas)
    flat: dict[tuple[float, ...], Tensor] = {}

    def merge(scales: Sequence[float]) -> Tensor:
        largest = max(scales, key=abs)
        ratio = tuple(round(scale / largest, 12) for scale in scales)
        if ratio not in flat:
            flat.clear()
            total = add(ratio)
            u, sigma, v = svd(total, min(total.shape))
            flat[ratio] = (sigma.mean() * (u @ v.T)).float() if len(sigma) else total
        return flat[ratio] * largest

    return merge


@merge_method("wudi", otherwise=addition)
def wudi(terms: Terms) -> Merge:
    """The M that interferes least, arXiv 2503.08099: argmin Σ_i ‖(M − λ_i T_i) T_iᵀ‖²/‖T_i‖², in closed form.

    Where the paper descends, the minimum is one linear solve: M Σ G_i = Σ λ_i T_i G_i with G_i = T_iᵀT_i/‖T_i‖²; of its
    solutions the one of least norm, which descent from the sum reaches too. Rows of T_i stand for the inputs of task
    i, so vectors with orthogonal inputs are simply added. The paper has no scale: λ_i = 1.
    """
    norms = [torch.linalg.vector_norm(delta, dtype=torch.float64) for delta in terms.deltas]
    deltas = [delta.double() for delta in terms.deltas]
    # Σ G_i = BᵀB of the stacked B = [T_i/‖T_i‖], and Σ λ_i T_i G_i = [λ_i T_i T_iᵀ/‖T_i‖] B, whence M = […] (B⁺)ᵀ.
    stacked = torch.cat([delta / norm for delta, norm in zip(deltas, norms, strict=True)])
    inverse = _pseudoinverse(stacked).T.split(len(deltas[0]))
    parts = [
        (((delta @ delta.T) / norm) @ block).float() for delta, norm, block in zip(deltas, norms, inverse, strict=True)
    ]
    return weighted(parts)


@merge_method("deflate", otherwise=addition)
def deflate(terms: Terms, fraction: Fraction = FIXED_FRACTION) -> Merge:
    """Each vector without its part in the others' leading directions: Σ λ_i (T_i − P_i T_i Q_i).

    P_i and Q_i project on the span of the other vectors' k leading left and right directions, k = `fraction` of
    min(m, n). Symmetric in the vectors, where the projection of arXiv 2501.09522 §4 takes them in turn; only what is
    inside on both sides goes.
    """
    k = max(1, round(fraction * min(terms.weight.shape)))
    leading = [svd(delta, k) for delta in terms.deltas]
    parts = []
    for i, delta in enumerate(terms.deltas):
        others = [usv for j, usv in enumerate(leading) if j != i]
        if others:
            u, v = (_span(torch.cat([usv[side] for usv in others], 1)) for side in (0, 2))
            delta = (delta.double() - u @ (u.T @ delta.double() @ v) @ v.T).float()
        parts.append(delta)
    return weighted(parts)


@merge_method("split-inside", otherwise=addition)
def split_inside(terms: Terms, fraction: Fraction = FIXED_FRACTION) -> Merge:
    """Σ λ_i Π_k T_i: only what stays inside the pretrained subspace, Π_k on the k leading left directions of W.

    That is the part that SSA measures (arXiv 2502.04959 eq. 5), at a fixed k = `fraction` of the output dimension.
    """
    basis = _pretrained(terms, fraction)
    return weighted([basis @ (basis.T @ delta) for delta in terms.deltas])


@merge_method("split-outside", otherwise=addition)
def split_outside(terms: Terms, fraction: Fraction = FIXED_FRACTION) -> Merge:
    """Σ λ_i (I − Π_k) T_i: only what leaves the pretrained subspace; see `split_inside`. The two add up to the sum."""
    basis = _pretrained(terms, fraction)
    return weighted([delta - basis @ (basis.T @ delta) for delta in terms.deltas])


def svd(delta: Float[Tensor, "m n"], k: int) -> tuple[Float[Tensor, "m r"], Float[Tensor, " r"], Float[Tensor, "n r"]]:
    """(U, σ, V) of the r ≤ k leading directions that `delta` has, float64, from the Gram of its smaller side."""
    decomposition = decompose(delta)
    rank = int((decomposition.sigma[:k] > _ZERO * decomposition.sigma[:1].clamp(min=1e-300)).sum())
    near, sigma = decomposition.near[:, :rank], decomposition.sigma[:rank]
    far = (delta.double().T if decomposition.wide else delta.double()) @ (near / sigma)
    return (near, sigma, far) if decomposition.wide else (far, sigma, near)


def _orthonormal(columns: Float[Tensor, "m r"]) -> Float[Tensor, "m r"]:
    """The nearest matrix with orthonormal columns (PQᵀ of PDQᵀ); of dependent columns, within their span."""
    p, d, qt = torch.linalg.svd(columns, full_matrices=False)
    kept = d > _ZERO
    return p[:, kept] @ qt[kept]


def _span(columns: Float[Tensor, "m r"]) -> Float[Tensor, "m s"]:
    """An orthonormal basis of what the columns span."""
    p, d, _ = torch.linalg.svd(columns, full_matrices=False)
    return p[:, d > _ZERO]


def _pseudoinverse(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "n m"]:
    """From the Gram of the smaller side."""
    u, sigma, v = svd(matrix, min(matrix.shape))
    return (v / sigma) @ u.T


def _pretrained(terms: Terms, fraction: float) -> Float[Tensor, "m k"]:
    decomposition = decompose(terms.weight)
    return left_basis(decomposition, fixed_k(decomposition, terms.weight.shape[0], fraction))
