"""What every merging method is given, what it gives back, and how it is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tv.runtime.registry import Registry

#: Scales λ, one a vector, none of them 0 → the merged T. The costly part is done before, so that a sweep is cheap.
Merge: TypeAlias = Callable[[Sequence[float]], Tensor]
#: Terms (and the method's options, by keyword) → Merge.
Method: TypeAlias = Callable[..., Merge]

#: Every method by name: what it does to a matrix.
METHODS: Registry[Method] = Registry("method", "tv.arithmetic.methods")
_PIECE = 2**16  # entries looked at together
_OTHERWISE: dict[Method, Method] = {}


def merge_method(name: str, otherwise: Method | None = None) -> Callable[[Method], Method]:
    """A decorator: the function becomes the merging method of this name.

    Args:
        name: What `tv.apply(method=…)`, `tv apply --method` and a model card call it.
        otherwise: What is done to gains, biases and embeddings, where the function needs a matrix.

    Returns:
        A decorator that leaves the function as it is. The function takes `Terms`, and its options as keywords with
        defaults; it returns a `Merge`.

    Examples:
        >>> "ties" in METHODS
        True
    """

    def decorate(method: Method) -> Method:
        if otherwise is not None:
            _OTHERWISE[method] = otherwise
        return METHODS.add(name, method, method.__module__)

    return decorate


def for_no_matrix(method: Method) -> Method:
    """What stands in for a method on parameters that are no matrix: itself, where it takes them."""
    return _OTHERWISE.get(method, method)


@dataclass(frozen=True)
class Terms:
    """One matrix, or one parameter of another form, of every vector that moves it."""

    deltas: tuple[Float[Tensor, "..."], ...]  # float32, all of one shape, none of them zero
    weight: Float[Tensor, "..."]  # the pretrained W of the same shape, float32
    key: str = ""  # of this place in the model and of the seed: random draws depend on nothing else


def moves(delta: Float[Tensor, "..."]) -> bool:
    """Whether any entry is not 0: most T show it at once."""
    return any(bool(part.any()) for part in delta.reshape(-1).split(_PIECE))


def weighted(parts: Sequence[Tensor]) -> Merge:
    """Σ λ_i P_i: the Merge of every method that treats each vector apart."""

    def merge(scales: Sequence[float]) -> Tensor:
        total = torch.zeros_like(parts[0])
        for part, scale in zip(parts, scales, strict=True):
            total.add_(part, alpha=scale)
        return total

    return merge
