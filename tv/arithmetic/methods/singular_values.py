"""The sum of tuning vectors with the singular values that several of them raised together brought back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tv.arithmetic.methods.elementwise import addition
from tv.arithmetic.methods.spectral import svd
from tv.arithmetic.methods.terms import Merge, Terms, merge_method, weighted

_NOTHING = 1e-6  # of σ_r: a vector with less along u_r has no part in this direction


@merge_method("calibrated", otherwise=addition)
def calibrated(
    terms: Terms,
    floor: Annotated[
        float, Field(gt=0, description="The least that a singular value is divided by; below 1 some are raised")
    ] = 1.0,
) -> Merge:
    """U diag(σ_r / η_r) Vᵀ of Σ λ_i T_i = U diag(σ) Vᵀ, where η_r says how often direction r was counted.

    With b_ri = u_rᵀ λ_i T_i, s_ri = ⟨σ_r v_r, b_ri⟩ / ‖b_ri‖² is how much longer the sum is along what vector i wanted
    there. η_r is the mean of s_ri, at least `floor`, where all of them are positive, else 1. So N equal vectors give
    one of them, and vectors with outputs of their own are just added.

    Source: in the spirit of arXiv 2602.05536 (singular value calibration), as its authors' program computes it, and no
    reproduction: there the sum is scaled before, and a floor of 0.1 takes that scale out again; here λ_i scale T_i.
    """
    found: dict[tuple[float, ...], Tensor] = {}

    def merge(scales: Sequence[float]) -> Tensor:
        largest = max(scales, key=abs)
        ratio = tuple(round(scale / largest, 12) for scale in scales)
        if ratio not in found:  # a sweep over a common λ decomposes once
            found.clear()
            found[ratio] = _calibrated(terms, ratio, floor)
        return found[ratio] * largest

    return merge


def _calibrated(terms: Terms, scales: Sequence[float], floor: float) -> Float[Tensor, "m n"]:
    total = weighted(terms.deltas)(scales)
    u, sigma, v = svd(total, min(total.shape))
    ratios, alike = torch.zeros_like(sigma), torch.ones_like(sigma, dtype=torch.bool)
    for delta, scale in zip(terms.deltas, scales, strict=True):
        wanted = u.T @ delta.double() * scale  # b_ri, (r, n)
        sizes = wanted.square().sum(1)
        along = sigma * (wanted * v.T).sum(1)
        has = sizes > (_NOTHING * sigma) ** 2
        ratios += torch.where(has, along / sizes.clamp(min=1e-300), 0.0)
        alike &= has & (along > 0)
    counted = torch.where(alike, (ratios / len(terms.deltas)).clamp(min=floor), 1.0)
    return ((u * (sigma / counted)) @ v.T).float()
