"""What every merging method is given, what it gives back, and how it is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tv.runtime.registry import Registry

#: Scales λ, one a vector, none of them 0 → the merged T. The costly part is done before, so that a sweep is cheap.
Merge: TypeAlias = Callable[[Sequence[float]], Tensor]
#: Terms (and the method's options, by keyword) → Merge.
Method: TypeAlias = Callable[..., Merge]

#: Every T_i of one piece, as functions that read it whole (and the method's options, by keyword) → scales → `Rows`.
#: Whatever depends on a whole T_i is found out before, from one of them at a time.
RowMethod: TypeAlias = Callable[..., Callable[[Sequence[float]], "Rows"]]
#: The next entries of every T_i → the same of the merged T. All of a piece pass through it in order, each once.
Rows: TypeAlias = Callable[[Sequence[Tensor]], Tensor]

#: Every method by name: what it does to a matrix.
METHODS: Registry[Method] = Registry("method", "tv.arithmetic.methods")
_PIECE = 2**16  # entries looked at together
_OTHERWISE: dict[Method, Method] = {}
_BY_ROWS: dict[Method, RowMethod] = {}


def merge_method(
    name: str, otherwise: Method | None = None, by_rows: RowMethod | None = None
) -> Callable[[Method], Method]:
    """A decorator: the function becomes the merging method of this name.

    Args:
        name: What `tv.apply(method=…)`, `tv apply --method` and a model card call it.
        otherwise: What is done to gains, biases and embeddings, where the function needs a matrix.
        by_rows: The same method a few rows at a time, where no T has to be held whole: it takes readers, a key and
            the options.

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
        if by_rows is not None:
            _BY_ROWS[method] = by_rows
        return METHODS.add(name, method, method.__module__)

    return decorate


def for_no_matrix(method: Method) -> Method:
    """What stands in for a method on parameters that are no matrix: itself, where it takes them."""
    return _OTHERWISE.get(method, method)


def by_rows(method: Method) -> RowMethod | None:
    """A method a few rows at a time; None where it needs whole matrices."""
    return _BY_ROWS.get(method)


def of_rows(start: Callable[[Sequence[float]], Rows], terms: Terms) -> Merge:
    """The Merge of whole tensors that a method by rows makes, a few entries at a time."""

    def merge(scales: Sequence[float]) -> Tensor:
        step, merged = start(scales), torch.empty_like(terms.weight.flatten())
        parts = (delta.flatten().split(_PIECE) for delta in terms.deltas)
        for out, *entries in zip(merged.split(_PIECE), *parts, strict=True):
            out.copy_(step(entries))
        return merged.reshape(terms.weight.shape)

    return merge


@dataclass(frozen=True)
class Terms:
    """One matrix, or one parameter of another form, of every vector that moves it."""

    deltas: tuple[Float[Tensor, "..."], ...]  # float32, all of one shape, none of them zero
    weight: Float[Tensor, "..."]  # the pretrained W of the same shape, float32
    key: str = ""  # of this place in the model and of the seed: random draws depend on nothing else

    @property
    def readers(self) -> list[Callable[[], Tensor]]:
        """The same, as a method by rows reads them."""
        return [partial(lambda delta: delta, delta) for delta in self.deltas]


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
