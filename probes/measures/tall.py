"""A tall module's outputs in few coordinates: norms and products of W Δx, T x and T Δx without their many entries.

All of W x, T x and Δb lies in a space of 2·cols + 1 dimensions, whatever the number of rows. With the Gram of
[W T Δb] = RᵀR (Cholesky), the columns of R are those of W, T and Δb in an orthonormal basis of that space: norms and
inner products are the same, and products with R cost as its few rows do. The Gram is float64, so that what it loses is
below float32's rounding of the products themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from tv.measures.decomposition import gram
from tv.runtime.products import linear

#: Entries of a matrix, and of its output, that are held in float32 at a time.
_PIECE = 2**21
#: From so many rows a column on, coordinates cost at most about half of what the products themselves do.
TALL = 4
#: What is added to the diagonal of the scaled Gram. Its root is how large a share of a typical output rounding is.
_RIDGE = 1e-13


@dataclass(frozen=True)
class Tall:
    """W, T and Δb as columns of the triangular R."""

    rows: int
    weight: Float[Tensor, "cols cols"]  # the rest of W's rows are zeros
    delta: Float[Tensor, "r cols"]  # r is 2·cols, and one more with a bias
    shift: Float[Tensor, " r"] | None

    def terms(self, x: Float[Tensor, "n cols"], moved: Float[Tensor, "n cols"]) -> tuple[Tensor, Tensor, Tensor]:
        """(T x + Δb, W Δx, T Δx), each (n, r)."""
        direct, interaction = linear(torch.cat([x, moved]), self.delta).split(len(x))
        if self.shift is not None:
            direct += self.shift
        return direct, pad(linear(moved, self.weight), (0, len(self.delta) - len(self.weight))), interaction


def tall_of(
    weight: Float[Tensor, "rows cols"],
    weight_tuned: Float[Tensor, "rows cols"],
    bias_change: Float[Tensor, " rows"] | None = None,
) -> Tall:
    """The coordinates of one module, of the rows in common."""
    rows, cols = weight.shape
    width = 2 * cols + (bias_change is not None)
    total = torch.zeros(width, width, dtype=torch.float64, device=weight.device)
    for part in parts(rows, 2 * cols):
        w = weight[part].float()
        both = [w, weight_tuned[part].float().to(w.device) - w]
        columns = torch.cat(both if bias_change is None else [*both, bias_change[part, None].to(w)], 1).T
        total += gram(columns, columns)
    r = _root(total).float()
    shift = None if bias_change is None else r[:, -1]
    return Tall(rows, r[:cols, :cols].contiguous(), r[:, cols : 2 * cols].contiguous(), shift)


def tall_bytes(cols: int) -> int:
    """Bytes that the coordinates of a module take, at most."""
    return 4 * cols * (cols + 2 * cols + 1)


def parts(rows: int, width: int) -> list[slice]:
    """The rows of a matrix, so many at a time that a piece of this width is small."""
    step = max(64, _PIECE // width)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _root(total: Float[Tensor, "r r"]) -> Float[Tensor, "r r"]:
    """The upper triangular R with RᵀR = `total`; a column of zeros stays one."""
    scale = total.diagonal().clamp(min=0).sqrt()
    nothing = scale == 0
    unit = torch.where(nothing, 1.0, scale)
    scaled = total / unit / unit[:, None]
    ridge = _RIDGE
    while True:
        scaled.diagonal().fill_(1 + ridge)
        found, failed = torch.linalg.cholesky_ex(scaled, upper=True)
        if not failed:
            return found * scale
        ridge *= 10
