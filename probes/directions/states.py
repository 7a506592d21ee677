"""The values of both models at a site, at chosen places of prompts: what directions are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from probes.capture.editing import site_at
from probes.capture.hooks.plan import Read, Seen, Site
from probes.capture.hooks.torch_backend import lockstep
from probes.capture.pair import Pair
from probes.measures.places import places_of
from tv.checkpoints.streamed import is_streamed
from tv.prompts.encoding import Batch, Encoded, Positions, batches

#: Where states are read: a site and a layer.
Place = tuple[str, int]


@dataclass(frozen=True)
class States:
    """n places of prompts, and what both models have there; on the CPU, in float32."""

    encoded: tuple[Encoded, ...]
    text: Int[Tensor, " n"]  # index into `encoded`
    pos: Int[Tensor, " n"]
    base: dict[Place, Float[Tensor, "n d_model"]]
    tuned: dict[Place, Float[Tensor, "n d_model"]]

    def delta(self, place: Place) -> Float[Tensor, "n d_model"]:
        """Δh = tuned − base."""
        return self.tuned[place] - self.base[place]

    @cached_property
    def clusters(self) -> NDArray[np.str_]:
        """(n,): the cluster of each place's prompt; the prompt's id where it has none."""
        own = np.array([item.prompt.cluster or item.prompt.id for item in self.encoded], dtype=np.str_)
        return own[self.text.numpy()]

    @cached_property
    def domains(self) -> NDArray[np.str_]:
        """(n,): the domain of each place's prompt."""
        return np.array([item.prompt.domain for item in self.encoded], dtype=np.str_)[self.text.numpy()]

    @cached_property
    def tokens(self) -> Int[Tensor, " n"]:
        """(n,): the token that each place reads."""
        return torch.tensor(
            [self.encoded[i].ids[p] for i, p in zip(self.text.tolist(), self.pos.tolist(), strict=True)]
        )

    def by_prompt(self, values: Float[Tensor, "n ..."]) -> Float[Tensor, "prompts ..."]:
        """The mean of each prompt's places, in the order of `encoded`."""
        total = values.new_zeros(len(self.encoded), *values.shape[1:]).index_add(0, self.text, values)
        n = torch.bincount(self.text, minlength=len(self.encoded)).clamp(min=1)
        return total / n.view(-1, *[1] * (values.ndim - 1)).to(total)


def each_batch(
    pair: Pair,
    encoded: Sequence[Encoded],
    places: Sequence[Place],
    *,
    positions: Positions = "all",
    batch_size: int = 16,
) -> Iterator[States]:
    """The states of a batch of prompts after another: nothing of a batch stays in memory but what a caller keeps.

    Args:
        pair: Both models.
        encoded: The prompts.
        places: Sites and layers, such as ("resid_post", 3).
        positions: The positions of each prompt, as a suite names them.
        batch_size: Prompts of a forward pass.

    Yields:
        The states of each batch; all batches together are the prompts in their order.

    Raises:
        RunError: The architecture has no such site in such a layer.
    """
    served: dict[str, list[tuple[Place, Site]]] = {}
    for place in places:
        read, own = site_at(pair.architecture, *place)
        served.setdefault(read.path, []).append((place, own))
    for batch in batches(encoded, batch_size, pair.pad_id):
        yield _states(pair, batch, served, positions)


def _states(pair: Pair, batch: Batch, served: dict[str, list[tuple[Place, Site]]], positions: Positions) -> States:
    at = places_of(batch, positions)
    found: tuple[dict[Place, Tensor], dict[Place, Tensor]] = ({}, {})

    def reduce(read: Read, base: Seen, tuned: Seen) -> None:
        for place, own in served[read.path]:
            for into, seen in zip(found, (base, tuned), strict=True):
                into[place] = at.take(seen.at(own)).to("cpu", torch.float32, copy=True)
        left.discard(read.path)
        if not left and not is_streamed(pair.base):
            raise _Enough

    reads = [Read(path, tuple(own for _, own in of)) for path, of in served.items()]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    left = set(served)
    with suppress(_Enough):
        lockstep(pair.base, pair.tuned, reads, inputs, reduce)
    return States(batch.encoded, at.row, at.pos, *found)


class _Enough(Exception):
    """Everything was read: the blocks behind it need not run."""


def read_states(
    pair: Pair,
    encoded: Sequence[Encoded],
    places: Sequence[Place],
    *,
    positions: Positions = "last",
    batch_size: int = 16,
) -> States:
    """The states of all prompts at once; arguments as `each_batch`. Memory: 8 bytes × places × d_model of each."""
    return joined(list(each_batch(pair, encoded, places, positions=positions, batch_size=batch_size)), places)


def joined(parts: Sequence[States], places: Sequence[Place]) -> States:
    """The states of several batches as one."""
    starts = np.cumsum([0, *(len(part.encoded) for part in parts)])
    text = torch.cat([part.text + int(start) for part, start in zip(parts, starts, strict=False)])
    base, tuned = (
        {place: torch.cat([getattr(part, side)[place] for part in parts]) for place in places}
        for side in ("base", "tuned")
    )
    return States(
        tuple(item for part in parts for item in part.encoded), text, torch.cat([p.pos for p in parts]), base, tuned
    )
