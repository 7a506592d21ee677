"""Float8 weights and the scales beside them: one per tensor, per row or per block."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.tensors import Readable

DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})
_SUFFIXES = ("_scale_inv", "_scale")  # both multiply the weight, whatever the first one's name says


def scale_of(stored: Readable, others: Mapping[str, Readable]) -> Readable | None:
    """The scales of a stored tensor, or None where it has none."""
    return next((others[stored.name + suffix] for suffix in _SUFFIXES if stored.name + suffix in others), None)


def block_of(
    shape: tuple[int, ...], scales: tuple[int, ...], declared: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The (rows, cols) that each scale serves, or None where so many scales do not fit a tensor of this shape.

    `declared` is the configuration's block, whose last row and column of blocks may be cut off.
    """
    experts, (rows, cols) = shape[:-2], shape[-2:]
    if scales == experts or all(size == 1 for size in scales):
        return rows, cols
    grid = scales[len(experts) :]
    if len(grid) != 2 or scales[: len(experts)] != experts or 0 in grid:
        return None
    divided = (rows // grid[0], cols // grid[1])
    for high, wide in (declared or divided, divided):
        if high and wide and (-(-rows // high), -(-cols // wide)) == grid:
            return high, wide
    return None


def dequantise(
    value: Float[Tensor, "... rows cols"], scale: Tensor, block: tuple[int, int]
) -> Float[Tensor, "... rows cols"]:
    """Each block of `value` times its scale, float32. Source: arXiv 2412.19437 §3.3.2 (blocks of 128 × 128)."""
    factor = (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()  # bytes are exponents
    out = value.float()
    if factor.numel() == 1:
        return out.mul_(factor.reshape(()))
    matrices, factors = ([out], [factor]) if out.ndim == 2 else (list(out), list(factor))
    for matrix, grid in zip(matrices, factors, strict=True):
        if grid.ndim < 2:
            matrix.mul_(grid)
            continue
        for band, row in zip(matrix.split(block[0]), grid, strict=True):
            band.mul_(row.repeat_interleave(block[1])[: matrix.shape[1]])
    return out
