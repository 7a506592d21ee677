"""How alike two models' representations of the same prompts are: CKA without bias, Procrustes, mutual neighbours.

Each is made of one place a prompt, and none depends on how the axes lie: a rotated representation is the same one.

Source: S. Kornblith et al. (2019), arXiv 1905.00414, with the estimator without bias of L. Song et al. (2012) and
T. Nguyen et al. (2021), arXiv 2010.15327; F. Ding et al. (2021), arXiv 2108.01661 (Procrustes); M. Huh et al. (2024),
arXiv 2405.07987 (mutual neighbours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from probes.directions.leaving_out import interval, kept
from probes.directions.similarity import cka, likenesses

States = Float[Tensor, "n d"]
#: Fewest prompts of which CKA can be told.
FEWEST_PROMPTS = 4


@dataclass(frozen=True)
class Distance:
    """A measure of two models at one place, its interval over clusters, and what unrelated rows give."""

    measure: str
    value: float
    lo: float
    hi: float
    shuffled: float  # the mean over draws
    shuffled_end: float  # the draw out of twenty that is most alike


def unbiased_cka(one: States, other: States) -> float:
    """Linear CKA by the U-statistic of HSIC: 1 for the same up to rotation and scale, 0 on average for independent.

    Examples:
        >>> draw = torch.Generator().manual_seed(0)
        >>> one, other = (torch.randn(48, 160, generator=draw) for _ in range(2))
        >>> abs(unbiased_cka(one, other)) < 0.1, round(unbiased_cka(one, 3 * one), 6)
        (True, 1.0)
    """
    return float(cka(likenesses(one), likenesses(other)))


def procrustes(one: States, other: States) -> float:
    """1 − ‖XᵀY‖_* of centred X and Y of length 1: 0 for the same up to rotation and scale, 1 for nothing in common.

    It is half of the squared orthogonal Procrustes distance. With fewer prompts than dimensions two unrelated sets are
    far from 1.

    Examples:
        >>> one = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
        >>> round(procrustes(one, one.flip(1) * 5 + 3), 6)
        0.0
    """
    factors = []
    for states in (one.double(), other.double()):
        centred = states - states.mean(0)
        # in the rows' own coordinates: as many as prompts, however wide the model is
        factors.append(torch.linalg.qr(centred.T, mode="r").R / centred.norm().clamp(min=1e-300))
    return max(0.0, float(1 - torch.linalg.matrix_norm(factors[0] @ factors[1].T, ord="nuc")))


def neighbours(states: States, k: int) -> Int[Tensor, "n k"]:
    """The k other rows whose cosine with each row is largest."""
    unit = normalize(states.double(), dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2.0)
    return cosines.topk(k, dim=1).indices


def mutual_neighbours(one: States, other: States, k: int) -> float:
    """The share of each prompt's k nearest prompts that both sets agree on, averaged; k/(n − 1) by chance.

    Examples:
        >>> one = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [0.1, 1.0], [1.0, 3.0]])
        >>> mutual_neighbours(one, 2 * one, 2)
        1.0
    """
    near = [torch.zeros(len(s), len(s)).scatter_(1, neighbours(s, k), 1.0) for s in (one, other)]
    return float((near[0] * near[1]).sum() / (k * len(one)))


def measures(k: int) -> Mapping[str, Callable[[States, States], float]]:
    """Every measure by name; all but `procrustes` are larger for what is more alike."""
    return {"cka": unbiased_cka, "procrustes": procrustes, "neighbours": partial(mutual_neighbours, k=k)}


def distances(
    one: States, other: States, clusters: Sequence[str], *, k: int = 10, draws: int = 20, seed: int = 0
) -> list[Distance]:
    """Every measure of two models' states of the same prompts.

    Args:
        one: A row a prompt.
        other: The other model's.
        clusters: The cluster of each prompt.
        k: Neighbours; fewer where there are few prompts.
        draws: How often rows are compared with others, clusters staying together.
        seed: Of these draws, and of the groups of clusters that are left out for the interval.

    Returns:
        One for each measure.
    """
    near = max(1, min(k, (len(one) - 1) // 2))
    stay, orders = kept(clusters, seed), [_shuffled(clusters, seed + draw) for draw in range(draws)]
    rows = []
    for name, measure in measures(near).items():
        value = measure(one, other)
        ends = interval([measure(one[s], other[s]) for s in stay], value, -1.0 if name == "cka" else 0.0, 1.0)
        null = np.array([measure(one, other[order]) for order in orders])
        closest = null.min() if name == "procrustes" else null.max()
        rows.append(Distance(name, value, *ends, float(null.mean()), float(closest)))
    return rows


def _shuffled(clusters: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Every prompt's partner of another order of the clusters: prompts of a cluster stay side by side."""
    names, which = np.unique(np.asarray(clusters, str), return_inverse=True)
    order = np.empty(len(which), np.int64)
    drawn = np.random.default_rng(seed).permutation(len(names))
    order[np.argsort(which, kind="stable")] = np.argsort(drawn[which], kind="stable")
    return order
