"""What a fitted choice is compared with: T trimmed by size, and T without its intruder dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tv.architecture.resolve import resolve
from tv.architecture.values import values_of
from tv.arithmetic.methods.layout import layout
from tv.arithmetic.variants import Mover
from tv.checkpoints.vector import TuningVector
from tv.measures.subspaces import INTRUDER_COSINE, INTRUDER_TOP
from tv.stats.means import Floats

#: Shares of entries that trimming leaves.
DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
#: What is left of an intruder dimension.
LEFT = (0.0, 0.25, 0.5, 0.75)


@contextmanager
def trimmed(model: PreTrainedModel, vector: TuningVector, density: float) -> Iterator[None]:
    """θ + T with the largest entries of each tensor alone, as TIES trims: arXiv 2306.01708."""
    with Mover(model, [vector], method="ties", density=density) as mover:
        mover.to({vector: 1.0})
        yield


@contextmanager
def without_intruders(
    model: PreTrainedModel, vector: TuningVector, intruders: TuningVector, left: float
) -> Iterator[None]:
    """θ + T with this share of its intruder dimensions left: arXiv 2410.21228 scales them so."""
    with Mover(model, [vector, intruders]) as mover:
        mover.to({vector: 1.0, intruders: left - 1.0})
        yield


def intruders_of(model: PreTrainedModel, vector: TuningVector) -> tuple[TuningVector, int]:
    """(the part of W + T in its intruder dimensions, Σ σ u vᵀ, as a vector; how many there are).

    An intruder is one of the leading left singular vectors of W + T (as many as `tv.geometry` looks at) whose cosine
    with every one of W's stays below the limit there. `model` stands at W.
    """
    values = values_of(model)
    pieces = layout(resolve(model), {name: tuple(value.shape) for name, value in values.items()})
    parts: dict[str, Tensor] = {}
    count = 0
    for name in vector.names:
        if name not in values or vector.shapes[name] != tuple(values[name].shape):
            continue  # a tied name, or a vocabulary that grew
        total = torch.zeros(vector.shapes[name])
        for piece in (piece for piece in pieces[name] if piece.is_matrix):
            before = piece.take(values[name].detach().float().cpu())
            part, n = _intruding(before, before + piece.take(vector[name].float().cpu()))
            piece.put(total, part)
            count += n
        parts[name] = total
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    return TuningVector(shapes, lambda name: parts[name], vector.provenance.control("intruders", 0)), count


def _intruding(before: Tensor, after: Tensor) -> tuple[Tensor, int]:
    u, sigma, vh = torch.linalg.svd(after, full_matrices=False)
    own = torch.linalg.svd(before, full_matrices=False).U
    top = min(INTRUDER_TOP, len(sigma))
    new = torch.nonzero((own.T @ u[:, :top]).abs().amax(0) < INTRUDER_COSINE).flatten()
    return (u[:, new] * sigma[new]) @ vh[new], len(new)


def equally_large(scales: Floats, energy: Floats, seed: int) -> Floats:
    """Scales of a random choice that removes as much of ‖T‖² as `scales` does: units reverted in a random order.

    The last one is reverted in part, so that Σ (1 − λ_u)² ‖T_u‖² is the same.
    """
    left = float(((1 - scales) ** 2 * energy).sum())
    drawn = np.ones(len(scales))
    for unit in np.random.default_rng(seed).permutation(np.flatnonzero(energy > 0)):
        share = min(1.0, left / energy[unit])
        drawn[unit] = 1 - share**0.5
        left -= share * energy[unit]
        if left <= 0:
            break
    return drawn
