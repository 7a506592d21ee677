"""Logits at the positions that a metric reads and no others: with many words, those of a whole batch fill memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ReadLogits:
    """The logits of a batch where they are read. Iterated, it gives each prompt's.

    Args:
        rows: The logits, prompt by prompt, by rising position.
        at: Where they belong.
    """

    rows: Float[Tensor, "k vocab"]
    at: Bool[Tensor, "batch pos"]

    def __iter__(self) -> Iterator[OfPrompt]:
        rows = self.rows.split(self.at.sum(1).tolist())
        for own, at in zip(rows, self.at, strict=True):
            yield OfPrompt(own, torch.where(at, at.cumsum(0) - 1, -1))

    def among_zeros(self) -> Float[Tensor, "batch pos vocab"]:
        """All logits of the batch, 0 where none are read."""
        at = self.at.to(self.rows.device)
        return self.rows.new_zeros(*at.shape, self.rows.shape[-1]).index_put((at,), self.rows)


@dataclass(frozen=True)
class OfPrompt:
    """The logits of one prompt, to be indexed by position as if all were there: by one, by several, or by a range.

    Args:
        rows: Those that are there.
        index: Of each position, which of them is its own; −1: none.
    """

    rows: Float[Tensor, "k vocab"]
    index: Int[Tensor, " pos"]

    def __getitem__(self, key: int | slice | Sequence[int] | tuple[Sequence[int], slice]) -> Tensor:
        """The logits at these positions, and of these words.

        Raises:
            IndexError: where none are there.
        """
        at, *words = key if isinstance(key, tuple) else (key,)
        index = self.index[at]
        if bool((index < 0).any()):
            raise IndexError("a metric takes logits at a position that is not among those that it says it reads")
        if isinstance(at, slice) and at.step in (None, 1) and len(index):  # a view, which copies nothing
            return self.rows[(slice(int(index[0]), int(index[-1]) + 1), *words)]
        return self.rows[(index, *words)]
