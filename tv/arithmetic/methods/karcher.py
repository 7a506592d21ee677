"""The mean of tuning vectors' directions on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tv.arithmetic.methods.terms import Merge, Terms, merge_method, weighted

_STEPS, _CLOSE = 500, 1e-12  # until the mean moves by no more than that angle


@merge_method("karcher")
def karcher(terms: Terms) -> Merge:
    """The Karcher mean of the directions of the λ_i T_i, as long as they are on average: (Σ ‖λ_i T_i‖ / N) u.

    u is the point of the unit sphere (of this tensor's entries) with the least Σ |λ_i| angle(u, λ_i T_i)². Of two
    vectors with one |λ| it halves their angle, as slerp at ½ does. Opposite vectors have no mean: they give 0. mergekit
    takes the mean of whole weights, which lie close together; here it is that of what training added.

    Source: H. Karcher (1977), Comm. Pure Appl. Math. 30; the fixed-point iteration of X. Pennec (2006), J. Math.
    Imaging Vis. 25.
    """
    n = len(terms.deltas)
    norms = [float(torch.linalg.vector_norm(delta, dtype=torch.float64)) for delta in terms.deltas]
    units = [delta.double().flatten() / norm for delta, norm in zip(terms.deltas, norms, strict=True)]
    cosines = torch.stack([torch.stack([a @ b for b in units]) for a in units])

    def merge(scales: Sequence[float]) -> Tensor:
        signs = cosines.new_tensor([math.copysign(1, scale) for scale in scales])
        sizes = cosines.new_tensor([abs(scale) for scale in scales])
        mean = _mean(cosines * signs * signs[:, None], sizes / sizes.sum())  # of ±T_i/‖T_i‖
        length = float(sizes @ cosines.new_tensor(norms)) / n
        parts = zip(mean.tolist(), signs.tolist(), norms, strict=True)
        return weighted(terms.deltas)([length * part * sign / norm for part, sign, norm in parts])

    return merge


def _mean(cosines: Float[Tensor, "n n"], weights: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The mean of n unit vectors as a sum of them: its coefficients. All of it happens in what they span."""

    def length(part: Float[Tensor, " n"]) -> float:
        return math.sqrt(max(0.0, float(part @ cosines @ part)))

    if length(weights) < 1e-9:
        return torch.zeros_like(weights)
    mean = weights / length(weights)
    for _ in range(_STEPS):
        dots = (cosines @ mean).clamp(-1, 1)
        angles = dots.arccos()
        towards = weights * torch.where(angles > 1e-7, angles / angles.sin().clamp(min=1e-300), 1.0)
        step = towards - (towards @ dots) * mean
        size = length(step)
        if size < _CLOSE:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / length(mean)
    return mean
