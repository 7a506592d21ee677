"""A part beside the text model, a vision tower say, in one row of `weights`: sums over all of its parameters."""

from __future__ import annotations

import math
from typing import Any

import torch

from tv.architecture.anatomy import Module
from tv.checkpoints.pairing import WeightPair
from tv.measures.geometry import entries_of


def group_row(pair: WeightPair, group: Module, device: str = "cpu") -> dict[str, Any]:
    """The row of a group, as if its parameters were one long vector. One of them is in memory at a time.

    What depends on the order of magnitudes (`large_overlap`), or on directions (ranks), is not measured.
    """
    sums, tensors = torch.zeros(7, dtype=torch.float64), 0
    for weight, delta, dtype, noise in pair.parameters(group):
        n, one = weight.numel(), entries_of(weight.to(device), delta.to(device), dtype)
        energy = one.delta_norm**2
        cross = one.cos_weight_delta * one.weight_norm * one.delta_norm if energy and one.weight_norm else 0.0
        rounded = noise.share(one.weight_norm, one.delta_norm) * energy if energy else 0.0
        changed = one.changed_fraction * n, one.changed_fraction_bf16 * n
        tensors += 1
        sums += torch.tensor([n, one.weight_norm**2, energy, cross, *changed, rounded], dtype=torch.float64)
    numbers, weight_square, energy, cross, entries, entries_bf16, rounded = sums.tolist()
    norm, moved = math.sqrt(weight_square), math.sqrt(energy)
    tuned = math.sqrt(max(0.0, weight_square + 2 * cross + energy))
    return {
        **{"layer": group.layer, "module": group.name, "head": -1, "expert": -1},
        **{"kind": group.kind, "rows": tensors, "cols": 1, "tied": False, "numbers": int(numbers)},
        "weight_norm": norm,
        "delta_norm": moved,
        "relative_norm": moved / norm if norm else 0.0,
        "cosine": (weight_square + cross) / (norm * tuned) if norm and tuned else 0.0,
        "cos_weight_delta": cross / (norm * moved) if norm and moved else math.nan,
        "changed_fraction": entries / numbers,
        "changed_fraction_bf16": entries_bf16 / numbers,
        "noise_share": rounded / energy if energy else math.nan,
    }
