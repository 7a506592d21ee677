"""Vectors that should do nothing in particular, with the length of a real one.

`random`: of no direction. `shuffled`: of what tells the same prompts' Δh apart; each deviation from the mean gets a
random sign, one a cluster, before they are averaged. Were the mean kept in, a Δh that is the same everywhere would be
its own placebo.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from probes.directions.sources import Making
from probes.directions.states import Place
from tv.runtime.seeds import seed_of

#: The kinds of placebo.
PLACEBOS = ("random", "shuffled")


def placebo(
    kind: str,
    draw: int,
    making: Making,
    places: tuple[Place, Place],
    like: tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]],
    seed: int,
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """A draw of a placebo, for each half of the prompts.

    Args:
        kind: One of `PLACEBOS`.
        draw: Which draw.
        making: The prompts' states.
        places: The site and layer of each half's vector.
        like: The real vectors, whose lengths it has.
        seed: Of the draws.
    """
    found = []
    for half, (place, vector) in enumerate(zip(places, like, strict=True)):
        own = _random(draw, len(vector), seed) if kind == "random" else _shuffled(draw, making, place, half, seed)
        found.append(normalize(own, dim=0) * vector.norm())
    return found[0], found[1]


def _random(draw: int, d_model: int, seed: int) -> Tensor:
    return torch.randn(d_model, generator=torch.Generator().manual_seed(seed_of(f"placebo {seed} {draw}")))


def _shuffled(draw: int, making: Making, place: Place, half: int, seed: int) -> Tensor:
    names = [item.prompt.cluster or item.prompt.id for item in making.states.encoded]
    signs = np.array([1.0 - 2.0 * (seed_of(f"shuffled {seed} {draw} {name}") % 2) for name in names], np.float32)
    own = torch.from_numpy(making.of_half(half))
    apart = making.states.delta(place)[own]
    return ((apart - apart.mean(0)) * torch.from_numpy(signs)[own, None]).mean(0)
