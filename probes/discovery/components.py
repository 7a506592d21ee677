"""Components of Δh at many places: found on some, measured on others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probes.discovery.factors import Loadings, Parts, Rows, loadings, refitted, semi_nmf, shares


@dataclass(frozen=True)
class Components:
    """k directions of every depth, around a mean, and how their loadings are found."""

    mean: Float[Tensor, "depth 1 d_model"]
    parts: Parts
    loads_of: Callable[[Rows, Parts], Loadings]

    def loads(self, rows: Rows) -> Loadings:
        """How much of each component is at every place, in the length of Δh."""
        return self.loads_of(rows - self.mean, self.parts)

    def shares(self, rows: Rows) -> Float[Tensor, "depth k"]:
        """The share of the sum of squares around the mean that lies in each."""
        around = rows - self.mean
        return shares(around, self.loads_of(around, self.parts), self.parts)

    def seen_in(self, rows: Rows) -> Float[Tensor, "depth k d_model"]:
        """Each component as these places have it, fitted to them with their loadings, as long as it is there (rms)."""
        around = rows - self.mean
        loads = self.loads_of(around, self.parts)
        return refitted(around, loads, self.parts) * loads.square().mean(-2).sqrt()[..., None]


def pca(rows: Rows, k: int) -> Components:
    """The leading directions around the mean, each towards the longer tail of its loadings."""
    mean = rows.mean(-2, keepdim=True)
    around = rows - mean
    parts = torch.linalg.svd(around, full_matrices=False).Vh[..., :k, :]
    tail = _along(around, parts).pow(3).sum(-2, keepdim=True).mT
    return Components(mean, torch.where(tail < 0, -parts, parts), _along)


def nmf(rows: Rows, k: int) -> Components:
    """Directions that add up to the rows themselves, with loadings that are never below 0, the largest first."""
    parts = semi_nmf(rows, k)
    order = shares(rows, loadings(rows, parts), parts).argsort(-1, descending=True)
    return Components(torch.zeros_like(rows[..., :1, :]), parts.take_along_dim(order[..., None], -2), loadings)


def _along(rows: Rows, parts: Parts) -> Loadings:
    return rows @ parts.mT
