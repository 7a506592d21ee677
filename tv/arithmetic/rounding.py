"""W + T as it is stored: rounded to the nearest, or at random so that small steps survive on average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.parameters import DTYPES
from tv.runtime.seeds import seed_of

_OF_WORD = {word: dtype for dtype, word in DTYPES.items()}
_PIECE = 2**16  # entries that are taken to float64 at a time


@dataclass(frozen=True)
class Rounding:
    """What storing left of a delta, in squares, so that parameters add up."""

    signal: float = 0.0  # ‖T‖²
    error: float = 0.0  # ‖stored − (W + T)‖²

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(self.signal + other.signal, self.error + other.error)

    @property
    def ratio(self) -> float:
        """‖T‖/‖error‖: the signal-to-noise ratio in amplitude; infinite where nothing was lost."""
        return (self.signal / self.error) ** 0.5 if self.error else float("inf")


def stored_dtype(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a tensor is written in: for a buffer its own where that is the finer one, as models keep them."""
    if name in checkpoint.names:
        return dtype
    return torch.promote_types(dtype, _OF_WORD.get(checkpoint.info(name).dtype, dtype))


def stored(
    weight: Float[Tensor, "..."], delta: Float[Tensor, "..."], dtype: torch.dtype, key: str | None = None
) -> tuple[Float[Tensor, "..."], Rounding]:
    """(W + T in `dtype`, what was lost): added in float32, and rounded to the nearest, or stochastically with a `key`.

    Stochastic rounding goes up with the probability of the distance from below, so that its mean is exact; an entry
    that bfloat16 holds stays as it is. What is drawn depends on `key` alone.
    """
    moved = weight.float() + delta
    value = moved.to(dtype) if key is None else _at_random(moved, key)
    signal = error = 0.0
    rows = [tensor.flatten().split(_PIECE) for tensor in (weight, delta, value)]
    for w, t, s in zip(*rows, strict=True):
        w, t = w.double(), t.double()
        signal += float(t.dot(t))
        lost = s.double().sub_(w.add_(t))
        error += float(lost.dot(lost))
    return value, Rounding(signal, error)


def _at_random(value: Float[Tensor, "..."], key: str) -> Float[Tensor, "..."]:
    """bfloat16 of float32: its upper 16 bits, after a random number is added to the lower ones."""
    seed = seed_of(key)
    generator = torch.Generator().manual_seed(seed)
    bits = value.contiguous().view(torch.int32)
    noise = torch.randint(0, 2**16, bits.shape, generator=generator, dtype=torch.int32).to(bits.device)
    rounded = ((bits + noise) & -(2**16)).view(torch.float32)
    limit = torch.finfo(torch.bfloat16).max
    return rounded.clamp(-limit, limit).to(torch.bfloat16)
