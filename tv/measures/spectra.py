"""The singular values of W and of T side by side, and how T's energy gathers along W's directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tv.columns import Column
from tv.measures.declared import Row, weight_table
from tv.measures.decomposition import Decomposition, Energies
from tv.measures.part import Part

#: Ranks that are kept of a spectrum, evenly spaced by their logarithm: all of the first ones.
POINTS = 64


@dataclass(frozen=True)
class Spectra:
    """What the matrices of one module say at one rank, counted from 1."""

    rank: int
    sigma: float  # W's singular value of that rank
    sigma_delta: float  # T's
    share_left: float  # of ‖T‖² in W's leading `rank` directions, output side: SSA² there; NaN where T is 0
    share_null_left: float  # rank/m: what a T of no preferred direction has there
    share_right: float  # the same on the input side
    share_null_right: float  # rank/n


@weight_table(
    "spectra",
    rows="module and rank, up to 64 of them, evenly spaced by their logarithm",
    where="layer module expert",
    columns=(
        Column("rank", "counted from 1", "int32"),
        Column("sigma", "the singular value of W", words="W, pretrained"),
        Column("sigma_delta", "the singular value of T", words="T, the change"),
        Column("share_left", "of ‖T‖² in W's leading directions, output side: SSA² there", null="share_null_left"),
        Column("share_null_left", "rank/m: of a T with no preferred direction"),
        Column("share_right", "of ‖T‖², input side", null="share_null_right"),
        Column("share_null_right", "rank/n"),
    ),
)
def spectra(part: Part) -> Iterator[Row]:
    """The rows of a whole matrix in a block."""
    if part.in_block and part.is_whole:
        yield from map(vars, spectra_of(part.decomposition, part.energies))


def spectra_of(decomposition: Decomposition, energies: Energies) -> list[Spectra]:
    """Both spectra at up to `POINTS` ranks from 1 to min(m, n)."""
    full, (m, n) = len(decomposition.sigma), decomposition.weight.shape
    ranks = sorted({round(math.exp(at * math.log(full) / (POINTS - 1))) for at in range(POINTS)} | {1, full})
    at = torch.tensor(ranks, device=decomposition.sigma.device) - 1
    sigma, of_delta = (values[at].tolist() for values in (decomposition.sigma, energies.spectrum.flip(0).sqrt()))
    of_nothing = 0.0 if energies.total else math.nan
    left, right = (
        (shares.double().cumsum(0).clamp(0, 1)[at] + of_nothing).tolist() for shares in (energies.left, energies.right)
    )
    return [Spectra(rank, sigma[i], of_delta[i], left[i], rank / m, right[i], rank / n) for i, rank in enumerate(ranks)]
