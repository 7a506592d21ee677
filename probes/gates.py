"""Gate patterns: which neurons' gates are open, and how far the two models' patterns lie apart.

Source: arXiv 2510.09359 (binary GLU gate patterns, normalised Hamming and Levenshtein distance).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from torch import Tensor


@dataclass(frozen=True)
class GatePatterns:
    """Both models' gate patterns at n places, and what they have in common. Rates are shares of d_ff."""

    base: UInt8[Tensor, "n bytes"]  # packed bits, first neuron in the highest bit
    xor: UInt8[Tensor, "n bytes"]  # base XOR tuned
    n_flips: Float[Tensor, " n"]
    flip_rate: Float[Tensor, " n"]  # normalised Hamming distance
    jaccard: Float[Tensor, " n"]  # open in both / open in either; 1 where none is open
    active_base: Float[Tensor, " n"]
    active_tuned: Float[Tensor, " n"]
    chance_flip_rate: Float[Tensor, " n"]  # of independent patterns with these two active rates


def gate_bits(gate: Float[Tensor, "n d_ff"]) -> Bool[Tensor, "n d_ff"]:
    """The gate pattern: gate_proj(x) > 0, the sign before the activation function."""
    return gate > 0


def compare_gates(base: Float[Tensor, "n d_ff"], tuned: Float[Tensor, "n d_ff"]) -> GatePatterns:
    """The patterns of both models and their distances."""
    a, b = gate_bits(base), gate_bits(tuned)
    d_ff = a.shape[-1]
    n_flips = (a ^ b).sum(-1).float()
    both, either = (a & b).sum(-1).float(), (a | b).sum(-1).float()
    rate_a, rate_b = a.float().mean(-1), b.float().mean(-1)
    return GatePatterns(
        base=pack(a),
        xor=pack(a ^ b),
        n_flips=n_flips,
        flip_rate=n_flips / d_ff,
        jaccard=torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both)),
        active_base=rate_a,
        active_tuned=rate_b,
        chance_flip_rate=rate_a * (1 - rate_b) + rate_b * (1 - rate_a),
    )


def pack(bits: Bool[Tensor, "n d_ff"]) -> UInt8[Tensor, "n bytes"]:
    """Eight bits a byte, the first in the highest place (as `numpy.packbits` does), on the tensor's own device."""
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8))
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=bits.device)
    return (bits.unflatten(-1, (-1, 8)).to(torch.uint8) * weights).sum(-1, dtype=torch.uint8)


def unpack(packed: NDArray[np.uint8], d_ff: int) -> NDArray[np.bool_]:
    """The bits of `pack`, (n, d_ff)."""
    return np.unpackbits(packed, axis=-1)[..., :d_ff].astype(bool)


def edit_distances(
    base: NDArray[np.bool_], tuned: NDArray[np.bool_], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normalised Levenshtein distance of each row's patterns, and its chance level; both (n,), quadratic in d_ff.

    The chance level has no closed form: it is the distance to one seeded shuffle of the tuned pattern, which keeps its
    active rate. Shuffling depends on the row's content and `seed` alone, so a row's value does not depend on its batch.
    """
    distance = np.empty(len(base), np.float32)
    chance = np.empty(len(base), np.float32)
    order = np.random.default_rng(seed).permutation(base.shape[1])
    for i, (a, b) in enumerate(zip(base.view(np.uint8), tuned.view(np.uint8), strict=True)):
        left = a.tobytes()
        distance[i] = Levenshtein.normalized_distance(left, b.tobytes())
        chance[i] = Levenshtein.normalized_distance(left, b[order].tobytes())
    return distance, chance
