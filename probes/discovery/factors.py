"""Few directions or topics whose sums make up many rows, each row with loadings that are never below 0.

Sources: D. Lee, H. Seung (1999), Learning the parts of objects by non-negative matrix factorization; of parts with any
sign, C. Ding, T. Li, M. Jordan (2010), Convex and semi-nonnegative matrix factorizations. Fitted by hierarchical
alternating least squares: A. Cichocki, A.-H. Phan (2009). The first parts are rows that are unlike: M. Araújo et al.
(2001), The successive projections algorithm.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "*batch n d"]
Loadings = Float[Tensor, "*batch n k"]
Parts = Float[Tensor, "*batch k d"]

#: Rounds of a fit; and of one where either side is fixed.
_ROUNDS, _SWEEPS = 40, 20
_LEAST = 1e-30


def nmf(rows: Rows, k: int) -> Parts:
    """k parts without an entry below 0, of rows ≥ 0.

    Args:
        rows: Of one batch, or of more.
        k: How many parts.

    Returns:
        The parts, of length 1.

    Examples:
        >>> nmf(torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), 2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return _fitted(rows, k, 0.0)


def semi_nmf(rows: Rows, k: int) -> Parts:
    """k parts of any sign, of length 1."""
    return _fitted(rows, k, -math.inf)


def loadings(rows: Rows, parts: Parts) -> Loadings:
    """How much of each part is in rows, never below 0: by least squares."""
    along, gram = rows @ parts.mT, parts @ parts.mT
    loads = torch.zeros_like(along)
    for _ in range(_SWEEPS):
        loads = _swept(loads, along, gram, 0.0)
    return loads


def refitted(rows: Rows, loads: Loadings, parts: Parts) -> Parts:
    """The parts that fit rows best with these loadings; one without any loading stays as it is."""
    along, gram = (loads.mT @ rows).mT, loads.mT @ loads
    found = parts.mT
    for _ in range(_SWEEPS):
        found = _swept(found, along, gram, -math.inf)
    return found.mT


def shares(rows: Rows, loads: Loadings, parts: Parts) -> Float[Tensor, "*batch k"]:
    """The share of the rows' sum of squares that lies in each part; of best loadings, the sum is what all explain."""
    return (loads * (rows @ parts.mT)).sum(-2) / rows.square().sum((-2, -1)).clamp(min=_LEAST)[..., None]


def _fitted(rows: Rows, k: int, least: float) -> Parts:
    parts = _unit(_chosen(rows, _unlike(rows, k)))
    loads = loadings(rows, parts)
    for _ in range(_ROUNDS):
        parts = _unit(_swept(parts.mT, (loads.mT @ rows).mT, loads.mT @ loads, least).mT)
        loads = _swept(loads, rows @ parts.mT, parts @ parts.mT, 0.0)
    return parts


def _swept(loads: Loadings, along: Loadings, gram: Float[Tensor, "*batch k k"], least: float) -> Loadings:
    """Each part's loadings, fitted beside the others'; `along` is rows · partsᵀ, and `gram` parts · partsᵀ."""
    loads, own = loads.clone(), gram.diagonal(dim1=-2, dim2=-1)[..., None]
    used, own = own > 0, own.clamp(min=_LEAST)
    all_used = bool(used.all())
    for i, (old, wanted) in enumerate(zip(loads.unbind(-1), along.unbind(-1), strict=True)):
        best = (wanted - (loads * gram[..., None, :, i]).sum(-1)).div_(own[..., i, :]).add_(old).clamp_(min=least)
        old.copy_(best if all_used else torch.where(used[..., i, :], best, old))
    return loads


def _unlike(rows: Rows, k: int) -> Int[Tensor, "*batch k"]:
    """The longest row, then the one that is longest across it, and so on."""
    left, chosen = rows, []
    for _ in range(k):
        chosen.append(left.square().sum(-1).argmax(-1, keepdim=True))
        own = _unit(_chosen(left, chosen[-1]))
        left = left - (left @ own.mT) * own
    return torch.cat(chosen, -1)


def _chosen(rows: Rows, which: Int[Tensor, "*batch k"]) -> Parts:
    return rows.gather(-2, which[..., None].expand(*which.shape, rows.shape[-1]))


def _unit(parts: Parts) -> Parts:
    return parts / parts.norm(dim=-1, keepdim=True).clamp(min=_LEAST)
