"""CKA of two sets of states of the same texts: how alike their likenesses are.

Source: S. Kornblith et al. (2019), arXiv 1905.00414; the estimator without bias is that of L. Song et al. (2012). The
plain one calls any two sets of few texts alike: of 48 independent Gaussians in 160 dimensions it says 0.76.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Generator, Tensor

States = Float[Tensor, "*batch n d"]
Gram = Float[Tensor, "*batch n n"]


def likenesses(states: States) -> Gram:
    """Products of every two rows, centred so that independent sets have none in common on average; n is above 3."""
    states = states.double()
    gram = states @ states.mT
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    n = gram.shape[-1]
    sums = gram.sum(-1)
    means = sums[..., :, None] + sums[..., None, :]
    gram = gram - means / (n - 2) + sums.sum(-1)[..., None, None] / ((n - 1) * (n - 2))
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    return gram


def cka(one: Gram, other: Gram) -> Float[Tensor, "*batch"]:
    """Linear CKA of `likenesses`: 1 where all are the same, 0 on average where the sets have nothing in common.

    Examples:
        >>> states = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [0.0, 0.0], [1.0, 3.0]])
        >>> round(float(cka(likenesses(states), likenesses(5 * states + 3))), 6)
        1.0
    """
    both = (one * other).sum((-2, -1))
    return both / (one.square().sum((-2, -1)) * other.square().sum((-2, -1))).sqrt().clamp(min=1e-300)


def shuffled_cka(one: Gram, other: Gram, draws: int, generator: Generator) -> Float[Tensor, "draws *batch"]:
    """CKA where texts of one set are compared with other texts of the other."""
    orders = [torch.randperm(one.shape[-1], generator=generator) for _ in range(draws)]
    return torch.stack([cka(one[..., order, :][..., order], other) for order in orders])
