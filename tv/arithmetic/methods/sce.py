"""Select, calculate, erase: entries in which vectors differ, weighed by their sizes, without minority signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tv.arithmetic.methods.terms import Merge, Terms, merge_method


@merge_method("sce")
def sce(
    terms: Terms,
    selected: Annotated[
        float, Field(gt=0, le=1, description="The share of entries, those that vary most, that stay")
    ] = 0.1,
) -> Merge:
    """Σ η_i M_i∘λ_i T_i / Σ η_i M_i over the entries whose variance among the λ_i T_i is in the top `selected` share.

    η_i is the share of ‖λ_i T_i‖² on these entries, and M_i leaves out what has not the sign of Σ λ_i T_i there. A
    single vector varies nowhere, and stays itself.

    Source: arXiv 2408.07990 §3.3, a parameter at a time. mergekit's `sce` selects all entries unless told otherwise.
    """

    def merge(scales: Sequence[float]) -> Tensor:
        scaled = torch.stack([delta * scale for delta, scale in zip(terms.deltas, scales, strict=True)])
        if len(scaled) == 1:
            return scaled[0]
        scaled *= _most(scaled.var(0, correction=0), selected)
        squares = scaled.double().square().flatten(1).sum(1)
        weights = (squares / squares.sum().clamp(min=1e-300)).to(scaled.dtype).view(-1, *[1] * terms.weight.ndim)
        agreeing = weights * ((scaled.sign() == scaled.sum(0).sign()) & (scaled != 0))
        total = agreeing.sum(0)
        return (scaled * agreeing).sum(0) / torch.where(total > 0, total, 1.0)

    return merge


def _most(variance: Float[Tensor, "..."], share: float) -> Float[Tensor, "..."]:
    """1 for the share of entries that vary most, else 0; of entries that vary alike the first."""
    flat = variance.flatten()
    kept = flat.sort(descending=True, stable=True).indices[: max(1, round(share * flat.numel()))]
    mask = torch.zeros_like(flat)
    mask[kept] = 1
    return mask.reshape(variance.shape)
