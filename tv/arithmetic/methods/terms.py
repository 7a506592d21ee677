"""What every merging method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

#: Scales λ, one a vector, none of them 0 → the merged T. What costs time was done before, so that a sweep is cheap.
Merge: TypeAlias = Callable[[Sequence[float]], Tensor]
#: Terms (and the method's own options, by keyword) → Merge.
Method: TypeAlias = Callable[..., Merge]


@dataclass(frozen=True)
class Terms:
    """One matrix, or one parameter of another form, of every vector that moves it."""

    deltas: tuple[Float[Tensor, "..."], ...]  # float32, all of one shape, none of them zero
    weight: Float[Tensor, "..."]  # the pretrained W of the same shape, float32
    key: str = ""  # of this place in the model and of the seed: what is drawn at random depends on nothing else


def weighted(parts: Sequence[Tensor]) -> Merge:
    """Σ λ_i P_i: the Merge of every method that treats each vector apart."""

    def merge(scales: Sequence[float]) -> Tensor:
        total = torch.zeros_like(parts[0])
        for part, scale in zip(parts, scales, strict=True):
            total.add_(part, alpha=scale)
        return total

    return merge
