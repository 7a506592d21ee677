"""Only the entries of each tuning vector that stand out, by their size and by how much their row changed."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tv.arithmetic.methods.terms import Merge, Terms, merge_method, weighted

_COUNTED = 2**20  # entries whose rows are compared at a time


@merge_method("fusion")
def fusion(terms: Terms) -> Merge:
    """Σ λ_i M_i∘T_i, M_i the entries of T_i whose importance is at least the median + 1.5 interquartile ranges.

    The importance of an entry is |T| times the KL divergence of the softmax of its row of W + T from that of W. A
    vector by itself is thinned too: most entries stay as the base has them.

    Source: like mergekit's `arcee_fusion`, which takes one model beside the base; quantiles are exact here, KL is
    computed in float64, and of several vectors each is thinned by itself. There is no paper.
    """
    return weighted([delta * _stands_out(_importance(delta, terms.weight)) for delta in terms.deltas])


def _importance(delta: Float[Tensor, "..."], weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    rows = max(1, _COUNTED // weight.shape[-1])
    parts = []
    for before, step in zip(_rows(weight).split(rows), _rows(delta).split(rows), strict=True):
        base, tuned = before.double().log_softmax(-1), (before.double() + step.double()).log_softmax(-1)
        moved = (tuned.exp() * (tuned - base)).sum(-1, keepdim=True).clamp(min=0)
        parts.append((step.double().abs() * moved).float())
    return torch.cat(parts).reshape(delta.shape)


def _rows(values: Float[Tensor, "..."]) -> Float[Tensor, "rows width"]:
    return values.reshape(-1, values.shape[-1])


def _stands_out(importance: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    values = importance.flatten().cpu().numpy()
    at = [int(share * (values.size - 1)) for share in (0.25, 0.5, 0.75)]
    first, median, third = np.partition(values, at)[at]
    return (importance >= float(median + 1.5 * (third - first))).to(importance.dtype)
