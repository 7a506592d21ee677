"""Random tuning vectors in T's place: of its norm and its effective rank, matrix by matrix.

A random matrix of few directions varies more in what it does to a model than one of full rank and of the same norm.
So T, which is often of few, is compared with matrices of as few: a random adapter is then one more of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor


@dataclass(frozen=True)
class Form:
    """What is kept of the T of one matrix or vector.

    Attributes:
        norm: Its Frobenius norm.
        rank: The rank of a random product whose spectrum is as wide; 0: that of a matrix of independent entries.
    """

    norm: float
    rank: int


def form_of(delta: Float[Tensor, "..."]) -> Form:
    """The form of a matrix or a vector.

    The width of a spectrum is (Σσ²)²/Σσ⁴. For a product of random m × r and r × n matrices it is 1/(1/m + 1/n + 1/r),
    for independent entries 1/(1/m + 1/n).
    """
    norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    if delta.ndim < 2 or min(delta.shape) < 2 or not norm:
        return Form(norm, 0)
    matrix = delta.float() / norm
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    rest = float(small.pow(2).sum(dtype=torch.float64)) - sum(1 / size for size in delta.shape)
    rank = max(1, round(1 / rest)) if rest > 0 else 0
    return Form(norm, rank if rank < min(delta.shape) else 0)


def move(start: Float[Tensor, "..."], form: Form, out: Float[Tensor, "..."], generator: Generator) -> None:
    """Write `start` plus a random T of the form into `out`."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(start.device)

    if not form.norm:
        out.copy_(start)
    elif not form.rank:
        noise = drawn(*start.shape)
        out.copy_(start + noise * (form.norm / float(torch.linalg.vector_norm(noise, dtype=torch.float64))))
    else:
        left, right = drawn(start.shape[0], form.rank), drawn(form.rank, start.shape[1])
        size = float(((left.T @ left) * (right @ right.T)).sum(dtype=torch.float64)) ** 0.5
        if start.dtype == torch.float32:
            torch.addmm(start, left, right, alpha=form.norm / size, out=out)
        else:
            out.copy_(torch.addmm(start.float(), left, right, alpha=form.norm / size))
