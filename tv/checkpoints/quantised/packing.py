"""Small whole numbers out of packed words, and the weights that they stand for."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor


def unpack(words: Shaped[Tensor, "... words"], bits: int, n: int) -> UInt8[Tensor, "... n"]:
    """The first `n` numbers of `bits` bits in each row of words, which is one stream of bits, lowest first."""
    rows = words.contiguous().view(torch.uint8)
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % bits))
    pieces = rows.unflatten(-1, (-1, bits))  # eight numbers in as many bytes as each has bits
    whole = torch.zeros(pieces.shape[:-1], dtype=torch.int64)
    for i in range(bits):
        whole |= pieces[..., i].long() << 8 * i
    codes = torch.empty(*whole.shape, 8, dtype=torch.uint8)
    for i in range(8):
        codes[..., i] = (whole >> bits * i) & (2**bits - 1)
    return codes.flatten(-2)[..., :n]


def scaled(
    codes: Shaped[Tensor, "rows cols"],
    scales: Float[Tensor, "rows groups"],
    zeros: Shaped[Tensor, "rows groups"] | int,
    group: Int[Tensor, " cols"] | None = None,
) -> Float[Tensor, "rows cols"]:
    """(code − zero) · scale, float32, with zero and scale of the column's group: `group`, or as many columns each."""
    factor, zero = scales.float(), zeros.float() if isinstance(zeros, Tensor) else torch.full((1, 1), float(zeros))
    zero = zero.expand_as(factor)
    if group is not None:
        return codes.float().sub_(zero[:, group]).mul_(factor[:, group])
    out = codes.float()
    out.unflatten(-1, (factor.shape[-1], -1)).sub_(zero[..., None]).mul_(factor[..., None])
    return out


def columns(n: int, size: int) -> Int[Tensor, " n"]:
    """The group of each of `n` columns, in groups of `size`, of which the last may be smaller."""
    return torch.arange(n) // size
