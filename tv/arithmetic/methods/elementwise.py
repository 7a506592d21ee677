"""Methods that take a tuning vector entry by entry: for parameters of every shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tv.arithmetic.methods.terms import Merge, Terms, merge_method, weighted
from tv.runtime.seeds import seed_of

Density = Annotated[float, Field(gt=0, le=1, description="The share of entries that stays")]
_PIECE = 2**16  # entries that are worked on at a time
_SAMPLED = 4096  # entries of a vector that its random mask depends on


@merge_method("sum")
def addition(terms: Terms) -> Merge:
    """Σ λ_i T_i: task arithmetic, arXiv 2212.04089 §2."""
    return weighted(terms.deltas)


def mean(terms: Terms) -> Merge:
    """Σ λ_i T_i / N, over the N vectors that move the parameter: what TSV-M and Iso-C do to all but matrices."""
    return weighted([delta / len(terms.deltas) for delta in terms.deltas])


@merge_method("ties")
def ties(terms: Terms, density: Density = 0.2) -> Merge:
    """Trim, elect sign, disjoint mean: arXiv 2306.01708, Algorithm 1.

    Of each T_i the `density` share of its entries that are largest stays (of this tensor, not of the whole vector). An
    entry's sign is that of Σ λ_i T_i, and it becomes the mean of the λ_i T_i which have that sign: with all λ_i = λ the
    paper's λ τ_m.
    """
    trimmed = torch.stack([_largest(delta, density).flatten() for delta in terms.deltas])

    def merge(scales: Sequence[float]) -> Tensor:
        merged = torch.empty_like(trimmed[0])
        factors = trimmed.new_tensor(scales)[:, None]
        for part, out in zip(trimmed.split(_PIECE, 1), merged.split(_PIECE), strict=True):
            scaled = part * factors
            agrees = scaled.sign() == scaled.sum(0).sign()
            agrees &= scaled != 0
            torch.div((scaled * agrees).sum(0), agrees.sum(0).clamp(min=1), out=out)
        return merged.reshape(terms.weight.shape)

    return merge


@merge_method("dare")
def dare(terms: Terms, density: Density = 0.5) -> Merge:
    """Drop and rescale, then add: arXiv 2311.03099 §3.2. Σ λ_i M_i ∘ T_i / density, M_i ~ Bernoulli(density).

    The paper's drop rate is p = 1 − density, which it searches for. A mask depends on the seed, on the parameter's name
    and on T_i itself: neither on the order of parameters or vectors nor on the device.
    """
    return weighted([_dropped(delta, density, terms.key) for delta in terms.deltas])


@merge_method("model-stock")
def model_stock(terms: Terms) -> Merge:
    """t · Σ λ_i T_i / N with t = N cosθ/(1 + (N − 1) cosθ): arXiv 2403.19522 §4.

    θ is the angle between tuning vectors of this tensor; of more than two the mean of their cosines stands in. The
    paper has no λ; here a negative one turns its vector round before the angle is taken. A single vector has t = 1, and
    t is kept within [0, 1]: vectors at an obtuse angle cancel.
    """
    n = len(terms.deltas)
    units = [delta.double().flatten() / torch.linalg.vector_norm(delta, dtype=torch.float64) for delta in terms.deltas]
    cosines = torch.stack([torch.stack([(a * b).sum() for b in units]) for a in units])

    def merge(scales: Sequence[float]) -> Tensor:
        if n == 1:
            return weighted(terms.deltas)(scales)
        signs = cosines.new_tensor([math.copysign(1, scale) for scale in scales])
        turned = cosines * signs * signs[:, None]
        cosine = float((turned.sum() - n) / (n * (n - 1)))
        share = max(0.0, n * cosine / (1 + (n - 1) * cosine)) if cosine > 0 else 0.0
        return weighted(terms.deltas)([share * scale / n for scale in scales])

    return merge


def _largest(delta: Float[Tensor, "..."], density: float) -> Float[Tensor, "..."]:
    """`delta` with all but that share of its entries, the largest, set to 0."""
    n = delta.numel()
    k = math.ceil(density * n)
    if k >= n:
        return delta
    kept = torch.zeros_like(delta).flatten()
    largest = delta.flatten().abs().topk(k, sorted=False).indices
    kept[largest] = delta.flatten()[largest]
    return kept.reshape(delta.shape)


def _dropped(delta: Float[Tensor, "..."], density: float, key: str) -> Float[Tensor, "..."]:
    """`delta` with entries set to 0 at random, and the others rescaled."""
    flat = delta.flatten()
    sample = flat[:: max(1, flat.numel() // _SAMPLED)].cpu().contiguous().numpy().tobytes()
    generator = torch.Generator().manual_seed(seed_of(key.encode() + sample))
    kept = torch.empty_like(flat)
    for part, out in zip(flat.split(_PIECE), kept.split(_PIECE), strict=True):
        draws = torch.rand(len(part), generator=generator)  # on the CPU: the same everywhere
        torch.mul(part, (draws < density).to(part.device), out=out).div_(density)
    return kept.reshape(delta.shape)
