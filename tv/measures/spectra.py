"""The singular values of W and of T side by side, and how T's energy gathers along W's directions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tv.measures.decomposition import Decomposition, Energies

#: Ranks that are kept of a spectrum, evenly spaced by their logarithm: all of the first ones.
POINTS = 64


@dataclass(frozen=True)
class Spectra:
    """What the matrices of one module say at one rank, counted from 1."""

    rank: int
    sigma: float  # W's singular value of that rank
    sigma_delta: float  # T's
    share_left: float  # of ‖T‖² in W's leading `rank` directions, output side: SSA² there
    share_null_left: float  # rank/m: what a T of no preferred direction has there
    share_right: float  # the same on the input side
    share_null_right: float  # rank/n


def spectra_of(decomposition: Decomposition, energies: Energies) -> list[Spectra]:
    """Both spectra at up to `POINTS` ranks from 1 to min(m, n)."""
    full, (m, n) = len(decomposition.sigma), decomposition.weight.shape
    ranks = sorted({round(math.exp(at * math.log(full) / (POINTS - 1))) for at in range(POINTS)} | {1, full})
    at = torch.tensor(ranks, device=decomposition.sigma.device) - 1
    sigma, of_delta = (values[at].tolist() for values in (decomposition.sigma, energies.spectrum.flip(0).sqrt()))
    left, right = (shares.double().cumsum(0).clamp(0, 1)[at].tolist() for shares in (energies.left, energies.right))
    return [Spectra(rank, sigma[i], of_delta[i], left[i], rank / m, right[i], rank / n) for i, rank in enumerate(ranks)]
