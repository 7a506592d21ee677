"""The leading directions that the matrices of a layer write along: left singular directions of W and of T."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from probes.capture.pair import Pair
from tv.architecture.anatomy import Module
from tv.checkpoints.streamed import stored_values

#: Matrices that write to the residual stream.
WRITERS = ("o", "down")


def leading_writers(pair: Pair, layer: int, rank: int) -> dict[str, Float[Tensor, "d_model r"]]:
    """By name (`o`, `T of o`, …): orthonormal columns. A T of 0 has none, and experts are left out.

    Args:
        pair: Both models.
        layer: From 0.
        rank: How many directions, at most.
    """
    before, after = stored_values(pair.base), stored_values(pair.tuned)
    found = {}
    for module in pair.architecture.modules:
        if module.layer != layer or module.name not in WRITERS or module.expert >= 0:
            continue
        base, tuned = (_matrix(module, values[module.parameter]) for values in (before, after))
        found[module.name] = _left(base, rank)
        if bool((tuned - base).any()):
            found[f"T of {module.name}"] = _left(tuned - base, rank)
    return found


def _matrix(module: Module, stored: Tensor) -> Float[Tensor, "d_model in"]:
    return module.matrix(stored.detach()).double().cpu()


def _left(matrix: Float[Tensor, "d_model in"], rank: int) -> Float[Tensor, "d_model r"]:
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)[:, :rank]
