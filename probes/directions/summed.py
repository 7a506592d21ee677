"""What both models' states are at a place, a mean a prompt: what directions, placebos and coordinates are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probes.capture.pair import Pair
from probes.directions.states import Place, each_batch
from tv.prompts.encoding import Encoded, Positions


@dataclass(frozen=True)
class Summed:
    """The mean state of every prompt at every place, in the order of the prompts."""

    encoded: tuple[Encoded, ...]
    base: dict[Place, Float[Tensor, "prompts d_model"]]
    tuned: dict[Place, Float[Tensor, "prompts d_model"]]

    def delta(self, place: Place) -> Float[Tensor, "prompts d_model"]:
        """The mean Δh of every prompt."""
        return self.tuned[place] - self.base[place]

    def mean(self, place: Place, chosen: NDArray[np.bool_]) -> Float[Tensor, " d_model"]:
        """The mean Δh of these prompts."""
        return self.delta(place)[torch.from_numpy(chosen)].mean(0)


def summed(
    pair: Pair, encoded: Sequence[Encoded], places: Sequence[Place], positions: Positions, batch_size: int
) -> Summed:
    """The mean states of prompts over chosen positions of each; arguments as `states.each_batch`."""
    base: dict[Place, list[Tensor]] = {place: [] for place in places}
    tuned: dict[Place, list[Tensor]] = {place: [] for place in places}
    for states in each_batch(pair, encoded, places, positions=positions, batch_size=batch_size):
        for place in places:
            base[place].append(states.by_prompt(states.base[place]))
            tuned[place].append(states.by_prompt(states.tuned[place]))
    joined = ({place: torch.cat(parts) for place, parts in side.items()} for side in (base, tuned))
    return Summed(tuple(encoded), *joined)
