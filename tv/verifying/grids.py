"""Whether a matrix was quantised and read back: its values then lie on a grid, by row or by block."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Entries that share a scale, as quantisers take them; 0 for a whole row.
_BLOCKS = (0, 16, 32, 64, 128, 256)
#: Levels on one side of zero, or in all, by what uses them.
_LEVELS = (127, 128, 7, 8, 15, 31, 32, 255)
_ROWS = 64  # that are looked at
_ON_GRID = 0.11  # mean distance from whole numbers; of values on no grid it is 0.25
_FEW = 16  # values in a block of 4 bits


def grid_of(value: Float[Tensor, "m n"], expected: Float[Tensor, "m n"]) -> str | None:
    """The grid that a matrix's values lie on and those expected do not, in words; None where there is none.

    Args:
        value: As the file holds it.
        expected: W + ΔW, rounded to the file's dtype.
    """
    if value.ndim != 2 or value.shape[1] < _BLOCKS[1]:
        return None
    rows = torch.linspace(0, len(value) - 1, min(_ROWS, len(value))).long()
    seen, meant = value[rows].double(), expected[rows].double()
    for size in _BLOCKS:
        if size and seen.shape[1] % size:
            continue
        place = f"blocks of {size}" if size else "rows"
        one, other = (side.reshape(-1, size or side.shape[1]) for side in (seen, meant))
        if one.shape[1] >= 2 * _FEW:
            few, many = (_distinct(side) for side in (one, other))
            if few <= _FEW and many > 1.5 * _FEW:
                return f"at most {int(few)} values in {place}: 4 bits or fewer"
        for levels in _LEVELS:
            for offset in (False, True):
                if 2 * levels > 8 * one.shape[1]:  # a grid that fine fits anything
                    continue
                near, far = (_distance(side, levels, offset) for side in (one, other))
                if near < _ON_GRID and far > 2 * near and far > 0.18:
                    return f"multiples of 1/{levels} of the largest in {place}"
    return None


def _distinct(blocks: Float[Tensor, "n size"]) -> float:
    """The median number of distinct values in a block."""
    in_order = blocks.sort(dim=1).values
    return float(((in_order[:, 1:] != in_order[:, :-1]).sum(1) + 1).double().median())


def _distance(blocks: Float[Tensor, "n size"], levels: int, offset: bool) -> float:
    """The mean distance from the multiples of 1/levels of a block's largest value (or of its range), in steps."""
    low = blocks.amin(1, keepdim=True) if offset else torch.zeros(1, 1, dtype=blocks.dtype)
    width = (blocks - low).abs().amax(1, keepdim=True)
    steps = (blocks - low) / width.clamp(min=1e-300) * levels
    # A block's own largest value, and all that is near 0, lie on every grid.
    counted = (steps.abs() > 0.5) & (steps.abs() < levels - 0.5)
    off = (steps - steps.round()).abs()
    return float(off[counted].mean()) if bool(counted.any()) else 1.0
