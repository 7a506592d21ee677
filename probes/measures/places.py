"""Where in a batch to measure: chosen (prompt, position) places, as index vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tv.prompts.encoding import Batch, Encoded, Positions, positions


@dataclass(frozen=True)
class Places:
    """Chosen places of a batch, by prompt and then by position."""

    row: Int[Tensor, " n"]  # index of the prompt in the batch
    pos: Int[Tensor, " n"]
    shape: tuple[int, int]  # (batch, pos) of the whole
    _on: dict[torch.device, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def whole(self) -> bool:
        """Whether these are all places of the batch, so that nothing needs to be picked."""
        return len(self.row) == self.shape[0] * self.shape[1]

    def take(self, x: Float[Tensor, "batch pos ..."], position_dim: int = 1) -> Float[Tensor, "n ..."]:
        """The values of x at these places. A batch dimension of 1 (position embeddings) stands for all prompts."""
        x = x.movedim(position_dim, 1)
        if x.shape[0] != self.shape[0]:
            x = x.expand(self.shape[0], *x.shape[1:])
        x = x.flatten(0, 1)
        return x if self.whole else x.index_select(0, self.flat(x.device))

    def rows(self, device: torch.device) -> Int[Tensor, " n"]:
        """`row` on `device`."""
        return self.flat(device) // self.shape[1]

    def flat(self, device: torch.device) -> Int[Tensor, " n"]:
        """The places as indices into (batch · pos), on `device`."""
        if device not in self._on:
            self._on[device] = (self.row * self.shape[1] + self.pos).to(device)
        return self._on[device]

    def __getitem__(self, index: Int[Tensor, " m"]) -> Places:
        """Some of these places."""
        index = index.cpu()
        return Places(self.row[index], self.pos[index], self.shape)

    def last_of_each(self) -> Int[Tensor, " prompts"]:
        """The index of every prompt's last place."""
        after = torch.cat([self.row[1:], self.row.new_full((1,), -1)])
        return (self.row != after).nonzero()[:, 0]


def places_of(batch: Batch, which: Positions) -> Places:
    """The places of a batch that a suite's choice of positions means."""
    return _places(batch, [positions(item, which) for item in batch.encoded])


def sample_of(batch: Batch, which: Positions, count: int | Literal["all"]) -> Places:
    """At most `count` of these places in each prompt, see `sampled`."""
    return _places(batch, [sampled(item, which, count) for item in batch.encoded])


def sampled(item: Encoded, which: Positions, count: int | Literal["all"]) -> Sequence[int]:
    """At most `count` positions of a prompt: where its answer begins, then others as evenly spaced as can be.

    With a continuation that is where the continuation begins, and without either the text's last.
    """
    chosen = positions(item, which)
    if count == "all" or len(chosen) <= count:
        return chosen
    first = item.n_text - 1 if item.n_text - 1 in chosen else chosen.start
    spaced = np.linspace(chosen.start, chosen.stop - 1, count).round().astype(int).tolist()
    spaced.remove(min(spaced, key=lambda pos: abs(pos - first)))
    return sorted([first, *spaced])


def _places(batch: Batch, chosen: Sequence[Sequence[int]]) -> Places:
    row = torch.tensor([i for i, span in enumerate(chosen) for _ in span], dtype=torch.long)
    pos = torch.tensor([p for span in chosen for p in span], dtype=torch.long)
    length = batch.input_ids.shape[1]
    return Places(row, pos, (len(batch.encoded), length))
