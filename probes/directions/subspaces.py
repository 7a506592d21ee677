"""Of which directions Δh is made: their share on prompts that did not choose them, and how steady they are.

PCA finds something in any few vectors of many numbers. So components are made of one half of the clusters and
measured on the other, both ways, over several halvings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.halves import halves
from probes.directions.leaving_out import interval, kept
from tv.stats.means import mean_interval

Floats = NDArray[np.float64]
States = Float[Tensor, "n d"]
Basis = Float[Tensor, "d r"]
#: Components whose shares are told.
COMPONENTS = 16
#: The dimensions of subspaces that are compared.
RANKS = (1, 2, 4, 8, 16)
#: Halvings, of those of `probes.attribution.halves`.
HALVINGS = 8
#: The name of the mean among components.
MEAN = 0


@dataclass(frozen=True)
class Share:
    """A component's share of squared length on held-out prompts, with its 95 % interval over clusters."""

    component: int  # 0: the mean, of all of ‖Δ‖²; from 1 on: of what is left around the mean
    share: float
    lo: float
    hi: float
    fitted: float  # on the prompts that made it, all of them


def spectrum(values: States, clusters: Sequence[str], seed: int) -> list[Share]:
    """The share of each component of vectors, held out.

    Args:
        values: A vector a prompt.
        clusters: The cluster of each prompt.
        seed: Of the halvings.

    Returns:
        The mean's share of ‖Δ‖², then that of each principal component of the variance around the mean; none where
        nothing moved, or with fewer than four clusters.
    """
    whole = values.double()
    if not bool(whole.any()):
        return []
    parts: list[tuple[Floats, Floats]] = []
    for first in list(halves(clusters, seed))[:HALVINGS]:
        for side in (first, ~first):
            parts.append(_held_out(whole[torch.from_numpy(side)], whole, ~side))
    if not parts:
        return []
    n = min(len(part) for part, _ in parts)
    inside = np.nanmean([part[:n] for part, _ in parts], axis=0)  # (components, prompts)
    total = np.nanmean([all_of for _, all_of in parts], axis=0)  # (mean or variance, prompts)
    fitted = _fitted(whole, n)
    return [
        Share(component, *_ratio(inside[component], total[min(component, 1)], clusters), fitted[component])
        for component in range(n)
    ]


def leading(values: States, rank: int, centred: bool = False) -> Basis:
    """The leading directions of vectors, orthonormal columns: of ‖·‖², or of the variance around the mean.

    Examples:
        >>> leading(torch.tensor([[0.0, 2.0], [0.0, -1.0], [0.1, 3.0]]), 1).abs().round(decimals=1).T.tolist()
        [[0.0, 1.0]]
    """
    rows = values.double()
    rows = rows - rows.mean(0) if centred else rows
    return torch.linalg.svd(rows, full_matrices=False).Vh[:rank].T


def overlap(one: Basis, other: Basis) -> float:
    """Mean squared cosine of the principal angles: 1 where one subspace holds the other, r/d of random directions.

    Examples:
        >>> overlap(torch.eye(4)[:, :2], torch.eye(4)[:, 1:3])
        0.5
    """
    return float((one.T @ other).square().sum() / min(one.shape[1], other.shape[1]))


def angles(one: Basis, other: Basis) -> tuple[float, float]:
    """The smallest and the largest principal angle, in degrees.

    Examples:
        >>> angles(torch.eye(4)[:, :2], torch.eye(4)[:, 1:3])
        (0.0, 90.0)
    """
    cosines = torch.linalg.svdvals(one.T @ other).clamp(max=1.0)
    found = torch.rad2deg(torch.arccos(cosines)).tolist()
    return float(min(found)), float(max(found))


def like_states(states: States, rank: int, seed: int) -> Basis:
    """A random subspace of directions drawn with the covariance of states: where activations are, more often."""
    draw = torch.Generator().manual_seed(seed)
    centred = states.double() - states.double().mean(0)
    rows = torch.randn(rank, len(centred), generator=draw, dtype=torch.float64) @ centred
    return torch.linalg.qr(rows.T).Q


def steadiness(values: States, clusters: Sequence[str], seed: int, centred: bool) -> Mapping[int, float]:
    """By rank, the overlap of the leading subspaces of two halves of the clusters, averaged over halvings."""
    found: dict[int, list[float]] = {}
    for first in list(halves(clusters, seed))[:HALVINGS]:
        sides = [values[torch.from_numpy(side)] for side in (first, ~first)]
        most = min(len(side) for side in sides) - centred
        bases = [leading(side, max(RANKS), centred) for side in sides]
        for rank in RANKS:
            if rank <= most:
                found.setdefault(rank, []).append(overlap(bases[0][:, :rank], bases[1][:, :rank]))
    return {rank: float(np.mean(each)) for rank, each in found.items()}


@dataclass(frozen=True)
class Angle:
    """The leading subspace of Δh against another one, beside random directions that lie where states do."""

    against: str
    rank: int
    overlap: float
    lo: float
    hi: float
    smallest: float  # principal angles, degrees; NaN between halves, of which there are many pairs
    largest: float
    null: float  # the mean over draws
    null_hi: float  # their 95th percentile


#: The names of the comparisons of one half of the prompts with the other.
HALF, HALF_AROUND_MEAN = "other half", "other half, around the mean"


def delta_angles(
    delta: States,
    states: States,
    matrices: Mapping[str, Basis],
    clusters: Sequence[str],
    *,
    draws: int,
    seed: int,
    intervals: bool = True,
) -> Iterator[Angle]:
    """The leading subspaces of Δh beside those of other halves and of matrices.

    Args:
        delta: Δh, a row a prompt.
        states: The base's states, whose covariance random directions are drawn with.
        matrices: Leading left singular directions, at least as many columns as the largest rank, by name.
        clusters: The cluster of each prompt.
        draws: Of random subspaces.
        seed: Of all draws.
        intervals: Whether groups of clusters are left out in turn.

    Yields:
        One for each rank and comparison that the prompts suffice for.
    """
    if not bool(delta.any()):
        return
    stay = kept(clusters, seed) if intervals else []
    names = np.asarray(clusters, str)
    random = [[like_states(states, max(RANKS), seed + 2 * d + i) for i in (0, 1)] for d in range(draws)]
    for name, centred in ((HALF, False), (HALF_AROUND_MEAN, True)):
        value = steadiness(delta, clusters, seed, centred)
        without = [steadiness(delta[torch.from_numpy(s)], names[s].tolist(), seed, centred) for s in stay]
        for rank, found in value.items():
            ends = interval([each.get(rank, np.nan) for each in without], found, 0.0, 1.0)
            null = [overlap(one[:, :rank], other[:, :rank]) for one, other in random]
            yield Angle(name, rank, found, *ends, np.nan, np.nan, *_null(null))
    basis = leading(delta, max(RANKS))
    bases = [leading(delta[torch.from_numpy(s)], max(RANKS)) for s in stay]
    for name, other in matrices.items():
        for rank in RANKS:
            if rank > min(basis.shape[1], other.shape[1]):
                continue
            own, theirs = basis[:, :rank], other[:, :rank]
            found = overlap(own, theirs)
            ends = interval([overlap(each[:, :rank], theirs) for each in bases], found, 0.0, 1.0)
            null = [overlap(one[:, :rank], theirs) for one, _ in random]
            yield Angle(name, rank, found, *ends, *angles(own, theirs), *_null(null))


def _null(draws: Sequence[float]) -> tuple[float, float]:
    return (float(np.mean(draws)), float(np.quantile(draws, 0.95))) if len(draws) else (np.nan, np.nan)


def _held_out(made_of: States, whole: States, held: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(components, prompts) and (2, prompts): squared projections and squared lengths of held-out prompts, else NaN."""
    mean = made_of.mean(0)
    axis = mean / mean.norm().clamp(min=1e-300)
    basis = leading(made_of, min(COMPONENTS, len(made_of) - 1), centred=True)
    measured = whole[torch.from_numpy(held)]
    around = measured - measured.mean(0)
    projected = torch.cat([(measured @ axis)[None], (around @ basis).T]).square().numpy()
    lengths = torch.stack([measured.square().sum(1), around.square().sum(1)]).numpy()
    inside, total = (np.full((len(each), len(whole)), np.nan) for each in (projected, lengths))
    inside[:, held], total[:, held] = projected, lengths
    return inside, total


def _fitted(whole: States, n: int) -> list[float]:
    mean = whole.mean(0)
    sizes = torch.linalg.svdvals(whole - mean).square()
    first = float(len(whole) * mean.square().sum() / whole.square().sum())
    return [first, *(sizes / sizes.sum().clamp(min=1e-300))[: n - 1].tolist()]


def _ratio(inside: Floats, total: Floats, clusters: Sequence[str]) -> tuple[float, float, float]:
    """(share, lo, hi) of a ratio of means over prompts, with the interval of its linear approximation."""
    share = float(inside.sum() / max(total.sum(), 1e-300))
    mean = mean_interval(share + (inside - share * total) / max(total.mean(), 1e-300), clusters)
    return share, float(np.clip(mean.lo, 0, 1)), float(np.clip(mean.hi, 0, 1))
