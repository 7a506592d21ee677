"""The leading singular directions of every matrix of a vector in weight space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import eigsh
from torch import Tensor
from torch.nn.functional import normalize

from tv.architecture.anatomy import Architecture

#: Leading directions of every matrix.
DIRECTIONS = 2
#: Of matrices with at least so many rows and columns the leading directions alone are found.
_LARGE = 256


@dataclass(frozen=True)
class Leading:
    """The leading directions of a matrix's step, of length 1, and their share of its energy."""

    module: int  # index into the architecture's modules
    left: Float[Tensor, "directions rows"]  # what the step adds to outputs
    right: Float[Tensor, "directions cols"]  # what of an input it answers to
    shares: Float[Tensor, " directions"]


def leading_of(architecture: Architecture, step_of: Callable[[str], Tensor | None]) -> Iterator[Leading]:
    """Of every matrix that moved, the unembedding left out.

    Args:
        architecture: Its modules name the matrices.
        step_of: By parameter: what is added to it, as stored; None where nothing is.

    Yields:
        The leading directions of one matrix.
    """
    for index, module in enumerate(architecture.modules):
        if module.kind != "linear" or module.component == "unembed":
            continue
        whole = step_of(module.parameter)
        if whole is None:
            continue
        step = module.matrix(whole).float()
        if bool(step.any()):
            left, right, shares = (of.cpu() for of in leading(step))
            yield Leading(index, left, right, shares)


def leading(
    step: Float[Tensor, "m n"], directions: int = DIRECTIONS
) -> tuple[Float[Tensor, "directions m"], Float[Tensor, "directions n"], Float[Tensor, " directions"]]:
    """The leading left and right singular directions, and their shares of the energy."""
    if min(step.shape) < _LARGE:
        left, sizes, right = torch.linalg.svd(step, full_matrices=False)
        return left.T[:directions], right[:directions], (sizes.square() / sizes.square().sum())[:directions]
    tall = step.shape[0] > step.shape[1]
    wide = step.T if tall else step
    gram = (wide @ wide.T).double().cpu().numpy()
    energies, found = eigsh(gram, k=directions, v0=np.ones(len(gram)))  # the largest last
    short = torch.from_numpy(found.T[::-1].copy()).to(wide)
    long = normalize(short @ wide, dim=1)
    shares = torch.from_numpy(energies[::-1] / gram.trace()).to(wide)
    return (long, short, shares) if tall else (short, long, shares)
