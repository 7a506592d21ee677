"""Float8 weights and the scales beside them: one per tensor, per row or per block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.quantised.fp4 import powers
from tv.checkpoints.quantised.parts import ADVICE, Files, Quantised
from tv.checkpoints.tensors import Stored

DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})
_SUFFIXES = ("_scale_inv", "_scale")  # both multiply the weight, whatever the first one's name says


def read(files: Files) -> Iterator[Quantised]:
    """The float8 weights of a checkpoint. Where nothing is declared, those without scales stand for themselves."""
    yield from in_blocks(files, files.declared.get("weight_block_size"))


def in_blocks(files: Files, declared: Sequence[int] | None) -> Iterator[Quantised]:
    """The same; each scale serves a block of the declared rows and columns, or of as many as fit."""
    for stored in [stored for stored in files.rest.values() if stored.dtype in DTYPES]:
        scale = next((part for suffix in _SUFFIXES if (part := files.find(stored.name + suffix)) is not None), None)
        if scale is not None:
            yield _weight(files, stored, scale, declared)
        elif files.declared:
            files.refuse(
                f"tensor {stored.name!r} is stored quantised, as {stored.dtype}, and its scale "
                f"{stored.name + '_scale_inv'!r} is missing",
                f"download it again, or {ADVICE}",
            )


def _weight(files: Files, stored: Stored, scale: Stored, declared: Sequence[int] | None) -> Quantised:
    block = block_of(stored.shape, scale.shape, (declared[0], declared[1]) if declared else None)
    if block is None:
        files.refuse(
            f"tensor {stored.name!r} has shape {list(stored.shape)} and scales {list(scale.shape)}, which do not fit "
            f"it (blocks of {declared})",
            "the two do not belong together",
        )
    parts = {"weight": stored, "scale": scale}
    return Quantised(stored.name, stored.shape, stored.dtype, parts, lambda parts: dequantise(**parts, block=block))


def block_of(
    shape: tuple[int, ...], scales: tuple[int, ...], declared: tuple[int, int] | None
) -> tuple[int, int] | None:
    """The (rows, cols) that each scale serves, or None where so many scales do not fit a tensor of this shape.

    `declared` is the configuration's block, whose last row and column of blocks may be cut off.
    """
    experts, (rows, cols) = shape[:-2], (1, 1, *shape)[-2:]
    if scales == experts or all(size == 1 for size in scales):
        return rows, cols
    grid = scales[len(experts) :]
    if grid == (rows,):
        return 1, cols
    if len(grid) != 2 or scales[: len(experts)] != experts or 0 in grid:
        return None
    divided = (rows // grid[0], cols // grid[1])
    for high, wide in (declared or divided, divided):
        if high and wide and (-(-rows // high), -(-cols // wide)) == grid:
            return high, wide
    return None


def dequantise(
    weight: Float[Tensor, "... rows cols"], scale: Tensor, block: tuple[int, int]
) -> Float[Tensor, "... rows cols"]:
    """Each block of the weight times its scale, float32. Source: arXiv 2412.19437 §3.3.2 (blocks of 128 × 128)."""
    factor = powers(scale) if scale.dtype == torch.uint8 else scale.float()
    out = weight.float()
    if factor.numel() == 1:
        return out.mul_(factor.reshape(()))
    matrices, factors = ([out], [factor]) if out.ndim == 2 else (list(out), list(factor))
    for matrix, grid in zip(matrices, factors, strict=True):
        if grid.ndim == 0:
            matrix.mul_(grid)
            continue
        for band, row in zip(matrix.split(block[0]), grid.reshape(len(grid), -1), strict=True):
            band.mul_(row.repeat_interleave(block[1])[: matrix.shape[1]])
    return out
