"""Gate patterns: which neurons' gates are open, and how far the two models' patterns lie apart.

Bits are handled eight neurons to a 64-bit word, a byte each, so that a pattern is packed, compared and counted without
touching its neurons one by one.

Source: arXiv 2510.09359 (binary GLU gate patterns, normalised Hamming distance).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

#: Gathers the lowest bits of a word's eight bytes in its highest byte, the first byte's bit uppermost.
_GATHER = sum(1 << 9 * i for i in range(7)) - (1 << 63)
_ROWS_PER_SUM = 255  # what a byte can count


@dataclass(frozen=True)
class GatePatterns:
    """Both models' gate patterns at n places, and what they have in common. Rates are shares of d_ff.

    `chance` is what independent patterns with these two active rates have; `kappa` is how far the patterns agree beyond
    that: 1 where they are the same, 0 at chance, NaN where chance alone makes them the same.
    """

    gate_base: UInt8[Tensor, "n bytes"]  # packed bits, first neuron in the highest bit
    gate_xor: UInt8[Tensor, "n bytes"]  # base XOR tuned
    n_flips: Int[Tensor, " n"]
    flip_rate: Float[Tensor, " n"]  # normalised Hamming distance
    chance_flip_rate: Float[Tensor, " n"]
    flip_kappa: Float[Tensor, " n"]
    jaccard: Float[Tensor, " n"]  # open in both / open in either; 1 where none is open
    chance_jaccard: Float[Tensor, " n"]
    jaccard_kappa: Float[Tensor, " n"]
    active_base: Float[Tensor, " n"]
    active_tuned: Float[Tensor, " n"]


@dataclass(frozen=True)
class NeuronCounts:
    """How often, of n places, each neuron's gate was open in either model, and how often the two differed."""

    n: int
    base: Int[Tensor, " d_ff"]
    tuned: Int[Tensor, " d_ff"]
    flips: Int[Tensor, " d_ff"]

    def __add__(self, other: NeuronCounts) -> NeuronCounts:
        return NeuronCounts(
            self.n + other.n, self.base + other.base, self.tuned + other.tuned, self.flips + other.flips
        )


def gate_bits(gate: Float[Tensor, "... d_ff"]) -> Bool[Tensor, "... d_ff"]:
    """The gate pattern: gate_proj(x) > 0, the sign before the activation function."""
    return gate > 0


def words(bits: Bool[Tensor, "n d_ff"]) -> Int[Tensor, "n words"]:
    """Eight neurons to a word, a byte each; the last word is filled with closed gates."""
    missing = -bits.shape[-1] % 8
    padded = torch.nn.functional.pad(bits, (0, missing)) if missing else bits
    return padded.contiguous().view(torch.int64)


def pack(bits: Int[Tensor, "n words"]) -> UInt8[Tensor, "n words"]:
    """A bit a neuron, eight a byte, the first in the highest place (as `numpy.packbits` does)."""
    return ((bits * _GATHER) >> 56).to(torch.uint8)


def unpack(packed: NDArray[np.uint8], d_ff: int) -> NDArray[np.bool_]:
    """The bits of `pack`, (n, d_ff)."""
    return np.unpackbits(packed, axis=-1)[..., :d_ff].astype(bool)


def compare_gates(base: Int[Tensor, "n words"], tuned: Int[Tensor, "n words"], d_ff: int) -> GatePatterns:
    """The patterns of both models (see `words`) and their distances."""
    changed = base ^ tuned
    n_base, n_tuned, n_flips = (_count(bits) for bits in (base, tuned, changed))
    rate_base, rate_tuned, flip_rate = (count / d_ff for count in (n_base, n_tuned, n_flips))
    both, either = (rate_base + rate_tuned - flip_rate) / 2, (rate_base + rate_tuned + flip_rate) / 2
    by_chance = rate_base * rate_tuned
    chance_flips = rate_base + rate_tuned - 2 * by_chance
    jaccard, chance_jaccard = _share(both, either), _share(by_chance, rate_base + rate_tuned - by_chance)
    return GatePatterns(
        gate_base=pack(base),
        gate_xor=pack(changed),
        n_flips=n_flips,
        flip_rate=flip_rate,
        chance_flip_rate=chance_flips,
        flip_kappa=1 - flip_rate / chance_flips,
        jaccard=jaccard,
        chance_jaccard=chance_jaccard,
        jaccard_kappa=(jaccard - chance_jaccard) / (1 - chance_jaccard),
        active_base=rate_base,
        active_tuned=rate_tuned,
    )


def count_neurons(base: Int[Tensor, "n words"], tuned: Int[Tensor, "n words"], d_ff: int) -> NeuronCounts:
    """Open gates and flips of every neuron, over all n places."""
    by_neuron = [_count_columns(bits)[:d_ff] for bits in (base, tuned, base ^ tuned)]
    return NeuronCounts(len(base), *by_neuron)


def _count(bits: Int[Tensor, "n words"]) -> Int[Tensor, " n"]:
    """How many gates of each place are open. A byte counts up to 255 words before it would run over."""
    total = torch.zeros(len(bits), dtype=torch.int32, device=bits.device)
    for part in bits.split(_ROWS_PER_SUM, dim=1):
        total += part.sum(1, keepdim=True).view(torch.uint8).sum(1, dtype=torch.int32)
    return total


def _count_columns(bits: Int[Tensor, "n words"]) -> Int[Tensor, " neurons"]:
    total = torch.zeros(8 * bits.shape[1], dtype=torch.int32, device=bits.device)
    for part in bits.split(_ROWS_PER_SUM):
        total += part.sum(0).view(torch.uint8)
    return total


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole, torch.ones_like(whole))
