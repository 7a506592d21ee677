"""Methods that take a tuning vector entry by entry: for parameters of every shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tv.arithmetic.methods.terms import Merge, Rows, Terms, merge_method, of_rows, weighted
from tv.runtime.seeds import seed_of

Density = Annotated[float, Field(gt=0, le=1, description="The share of entries that stays")]
_COUNTED = 2**20  # entries whose sizes are counted at a time
_SAMPLED = 4096  # entries of a vector that its random mask depends on


def addition_rows(readers: Sequence[Callable[[], Tensor]], key: str) -> Callable[[Sequence[float]], Rows]:
    """`addition` a few rows at a time."""
    return lambda scales: lambda parts: weighted(parts)(scales)


@merge_method("sum", by_rows=addition_rows)
def addition(terms: Terms) -> Merge:
    """Σ λ_i T_i: task arithmetic, arXiv 2212.04089 §2."""
    return weighted(terms.deltas)


def mean(terms: Terms) -> Merge:
    """Σ λ_i T_i / N, over the N vectors that move the parameter: what TSV-M and Iso-C do to all but matrices."""
    return weighted([delta / len(terms.deltas) for delta in terms.deltas])


def ties_rows(
    readers: Sequence[Callable[[], Tensor]], key: str, density: Density = 0.2
) -> Callable[[Sequence[float]], Rows]:
    """`ties` a few rows at a time: of each T_i only its limit is kept."""
    limits = [_limit(read(), density) for read in readers]

    def start(scales: Sequence[float]) -> Rows:
        trims = [_trim(*limit) for limit in limits]

        def step(parts: Sequence[Tensor]) -> Tensor:
            scaled = torch.stack([trim(part) * scale for trim, part, scale in zip(trims, parts, scales, strict=True)])
            agrees = scaled.sign() == scaled.sum(0).sign()
            agrees &= scaled != 0
            return (scaled * agrees).sum(0).div_(agrees.sum(0).clamp(min=1))

        return step

    return start


@merge_method("ties", by_rows=ties_rows)
def ties(terms: Terms, density: Density = 0.2) -> Merge:
    """Trim, elect sign, disjoint mean: arXiv 2306.01708, Algorithm 1.

    Of each T_i the `density` share of its entries that are largest stays (of this tensor, not of the whole vector; of
    entries of one size the first). An entry's sign is that of Σ λ_i T_i, and it becomes the mean of the λ_i T_i which
    have that sign: with all λ_i = λ the paper's λ τ_m.
    """
    return of_rows(ties_rows(terms.readers, terms.key, density), terms)


def dare_rows(
    readers: Sequence[Callable[[], Tensor]], key: str, density: Density = 0.5
) -> Callable[[Sequence[float]], Rows]:
    """`dare` a few rows at a time: of each T_i only the seed of its mask is kept."""
    seeds = [_mask_seed(read(), key) for read in readers]

    def start(scales: Sequence[float]) -> Rows:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def step(parts: Sequence[Tensor]) -> Tensor:
            kept = [_dropped(part, density, at) for part, at in zip(parts, generators, strict=True)]
            return weighted(kept)(scales)

        return step

    return start


@merge_method("dare", by_rows=dare_rows)
def dare(terms: Terms, density: Density = 0.5) -> Merge:
    """Drop and rescale, then add: arXiv 2311.03099 §3.2. Σ λ_i M_i ∘ T_i / density, M_i ~ Bernoulli(density).

    The paper's drop rate is p = 1 − density, which it searches for. A mask depends on the seed, on the parameter's name
    and on T_i itself: neither on the order of parameters or vectors nor on the device.
    """
    return of_rows(dare_rows(terms.readers, terms.key, density), terms)


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


def _limit(delta: Float[Tensor, "..."], density: float) -> tuple[float, int]:
    """(the size of the smallest entry that stays when that share of them does, how many of this size do).

    The entries are counted by the upper 16 bits of their size, which are in the order of sizes; only those that share
    them with the one that is looked for are sorted.
    """
    parts = delta.flatten().cpu().split(_COUNTED)
    n, k = delta.numel(), math.ceil(density * delta.numel())
    if k >= n:
        return 0.0, 0
    sizes = (part.abs().numpy() for part in parts)
    counts = np.sum([np.bincount(part.view(np.int32) >> 16, minlength=2**15) for part in sizes], 0)
    at_least = np.cumsum(counts[::-1])[::-1]  # of these bits or greater ones
    bits = int(np.flatnonzero(at_least >= k)[-1])
    above = int(at_least[bits + 1]) if bits + 1 < len(at_least) else 0
    sizes = (part.abs().numpy() for part in parts)
    alike = np.sort(np.concatenate([part[part.view(np.int32) >> 16 == bits] for part in sizes]))[::-1]
    limit = alike[k - above - 1]
    return float(limit), k - above - int(np.count_nonzero(alike > limit))


def _trim(limit: float, spare: int) -> Callable[[Tensor], Tensor]:
    """A function of consecutive entries: 0 for those below the limit, and beyond the first `spare` at it."""
    left = spare

    def trim(part: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        nonlocal left
        sizes = part.abs()
        stays, at = sizes > limit, sizes == limit
        found = int(at.count_nonzero()) if limit else 0
        if found:
            if found > left:
                at &= (at.flatten().cumsum(0) <= left).reshape(at.shape)
            stays |= at
            left = max(0, left - found)
        return part * stays

    return trim


def _mask_seed(delta: Float[Tensor, "..."], key: str) -> int:
    flat = delta.flatten()
    sample = flat[:: max(1, flat.numel() // _SAMPLED)].cpu().contiguous().numpy().tobytes()
    return seed_of(key.encode() + sample)


def _dropped(part: Float[Tensor, "..."], density: float, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Consecutive entries with some set to 0 at random, and the others rescaled."""
    draws = torch.rand(part.shape, generator=generator)  # on the CPU: the same everywhere
    return part.mul((draws < density).to(part.device)).div_(density)
