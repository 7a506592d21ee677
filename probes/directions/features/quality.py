"""How well a dictionary reads two models, beside a PCA of k components, and whether another seed finds it again."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from probes.directions.features.dictionary import Dictionary
from probes.directions.features.latents import Floats, pieces

Sides = tuple[float, float, float]
Flags = NDArray[np.bool_]


def unexplained(
    dictionary: Dictionary, base: Float[Tensor, "n d_model"], tuned: Float[Tensor, "n d_model"]
) -> tuple[Sides, float]:
    """The fraction of variance unexplained of base, of tuned and of Δh, and L0: latents that fire at a place."""
    device = dictionary.bias.device
    means = [x.mean(0).to(device) for x in (base, tuned, tuned - base)]
    off, whole, fired = np.zeros(3), np.zeros(3), 0.0
    for x, y, active in pieces(dictionary, base, tuned):
        one, other = dictionary.written(active)
        of_both = (x - one, y - other, (y - x) - (other - one))
        off += [float(left.double().square().sum()) for left in of_both]
        whole += [float((h - m).double().square().sum()) for h, m in zip((x, y, y - x), means, strict=True)]
        fired += float((active.base > 0).sum() + (active.tuned > 0).sum()) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = off / whole
    if dictionary.form == "delta":  # it says nothing of either model alone
        ratio[:2] = np.nan
    return (float(ratio[0]), float(ratio[1]), float(ratio[2])), fired / len(base)


def pca_unexplained(fitted: Float[Tensor, "n d_model"], held_out: Float[Tensor, "k d_model"], components: int) -> float:
    """The fraction of variance of held-out places that the leading principal components of others leave unexplained."""
    mean = fitted.mean(0)
    _, vectors = torch.linalg.eigh((fitted - mean).double().T @ (fitted - mean).double())
    leading = vectors[:, -components:] if components else vectors[:, :0]
    x = held_out.double() - mean.double()
    left = (x - x @ leading @ leading.T).square().sum()
    whole = (held_out.double() - held_out.double().mean(0)).square().sum()
    return float(left / whole) if float(whole) > 0 else float("nan")


def matched(one: Dictionary, other: Dictionary, alive: Flags, alive_other: Flags) -> Floats:
    """(latents,): the cosine of each latent's decoder rows with those of its partner in another dictionary.

    Latents are matched one to one so that the sum of cosines is largest. NaN where a latent is not alive, or has none.
    """
    found = np.full(one.size, np.nan)
    at, there = np.flatnonzero(alive), np.flatnonzero(alive_other)
    if len(at) and len(there):
        cosines = (_rows(one)[at] @ _rows(other)[there].T).cpu().numpy()
        left, right = linear_sum_assignment(-cosines)
        found[at[left]] = cosines[left, right]
    return found


def _rows(dictionary: Dictionary) -> Float[Tensor, "latents both"]:
    rows = dictionary.decoder.transpose(0, 1).flatten(1)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
