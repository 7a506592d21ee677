"""What every latent of a dictionary is in both models: how large, how often, and how much of it the other model has.

Latent scaling: Minder et al. 2025 (arXiv 2504.02922), section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from probes.directions.features.dictionary import Activations, Dictionary

Floats = NDArray[np.float64]
#: Places that are read at once: so many activations are held.
_AT_ONCE = 4096


@dataclass(frozen=True)
class Latents:
    """Every latent over n places; each field (latents,). NaN where a latent never fires.

    `nu_…_base` is how much of what the latent writes in tuned base has too, over how much tuned has: 1 for a shared
    latent, 0 for one that only tuned has. `nu_…_tuned` is the other way round. Of `error`: in what all other latents
    leave over, of crosscoders alone. Of `written`: in what all latents write; of the form delta, in the states around
    their mean; of a public dictionary, the root of Σ a² in one model over Σ a² in the other.
    """

    fires: Floats  # places where it fires in either model
    fires_base: Floats
    fires_tuned: Floats
    norm_base: Floats  # ‖d_base‖
    norm_tuned: Floats
    cosine: Floats  # of d_base and d_tuned
    size: Floats  # its root mean square activation where it fires
    change: Floats  # the root mean square, over places where it fires, of ‖its part in Δh‖/‖h_base‖
    energy: Floats  # Σ ‖its part in Δh‖² over Σ ‖Δh‖²: parts of several latents overlap, so these need not sum to 1
    nu_error_base: Floats
    nu_error_tuned: Floats
    nu_written_base: Floats
    nu_written_tuned: Floats


def pieces(
    dictionary: Dictionary, base: Float[Tensor, "n d_model"], tuned: Float[Tensor, "n d_model"]
) -> Iterator[tuple[Tensor, Tensor, Activations]]:
    """States of both models, and the activations there, some thousand places at a time."""
    for x, y in zip(base.split(_AT_ONCE), tuned.split(_AT_ONCE), strict=True):
        x, y = x.to(dictionary.bias.device), y.to(dictionary.bias.device)
        yield x, y, dictionary.activations(x, y)


def measure(dictionary: Dictionary, base: Float[Tensor, "n d_model"], tuned: Float[Tensor, "n d_model"]) -> Latents:
    """Every latent of a dictionary over the places that these states are of."""
    m = dictionary.size
    d_base, d_tuned = dictionary.decoder
    fires, fires_base, fires_tuned = (np.zeros(m) for _ in range(3))
    squares, relative, parts = (np.zeros(m) for _ in range(3))
    left = torch.zeros(2, m, d_base.shape[1], dtype=torch.float64)  # Σ f ε of both models
    gram = torch.zeros(m, m, dtype=torch.float64)  # Σ f f'
    along = torch.zeros(2, m, dtype=torch.float64)  # Σ f ⟨h − mean, d⟩, or Σ a²
    means = [side.mean(0).to(dictionary.bias) for side in (base, tuned)]
    whole = 0.0
    for x, y, active in pieces(dictionary, base, tuned):
        both = active.either
        fires += _sum(both > 0)
        fires_base += _sum(active.base > 0)
        fires_tuned += _sum(active.tuned > 0)
        squares += _sum(both.square())
        part = _part_squares(dictionary, active)
        parts += _sum(part)
        relative += _sum(part / x.square().sum(1, keepdim=True).clamp(min=1e-12))
        whole += float((y - x).square().sum())
        if dictionary.form == "crosscoder":
            for side, (h, own) in enumerate(zip((x, y), dictionary.written(active), strict=True)):
                left[side] += (both.T @ (h - own)).double().cpu()
            gram += (both.T @ both).double().cpu()
        for side, (h, mean, own) in enumerate(zip((x, y), means, (active.base, active.tuned), strict=True)):
            if dictionary.form == "delta":
                along[side] += (both * ((h - mean) @ d_tuned.T)).sum(0).double().cpu()
            elif dictionary.form == "public":
                along[side] += own.square().sum(0).double().cpu()
    with np.errstate(invalid="ignore", divide="ignore"):
        if dictionary.form == "crosscoder":
            nus = _nus(dictionary, left, gram)
        else:
            sizes = along.abs().numpy() if dictionary.form == "delta" else along.sqrt().numpy()
            nus = [*[np.full(m, np.nan)] * 2, sizes[0] / sizes[1], sizes[1] / sizes[0]]
        return Latents(
            fires,
            fires_base,
            fires_tuned,
            _numbers(d_base.norm(dim=1)),
            _numbers(d_tuned.norm(dim=1)),
            _numbers(cosine_similarity(d_base, d_tuned)) if dictionary.form == "crosscoder" else np.full(m, np.nan),
            np.sqrt(squares / fires),
            np.sqrt(relative / fires),
            parts / whole if whole else np.full(m, np.nan),
            *nus,
        )


def _part_squares(dictionary: Dictionary, active: Activations) -> Float[Tensor, "n latents"]:
    """‖a_tuned d_tuned − a_base d_base‖² of every latent at every place."""
    if active.base is active.tuned:
        return active.tuned.square() * dictionary.step.square().sum(1)
    return (active.tuned - active.base).square() * dictionary.decoder[1].square().sum(
        1
    )  # public: both write the same direction


def _nus(
    dictionary: Dictionary, left: Float[Tensor, "2 latents d_model"], gram: Float[Tensor, "latents latents"]
) -> list[Floats]:
    """ν of error in base and in tuned, then of what is written.

    β of a model is the least squares scale of f d in y, with d the direction in the model that has the latent: of the
    error, y = ε + f d_model, where ε is what the whole dictionary leaves over; of what is written, y = f D.
    """
    decoder = dictionary.decoder.double().cpu()
    own = gram.diagonal()
    errors, written = [], []
    for has, other in ((1, 0), (0, 1)):
        d = decoder[has]
        scales = [
            ((left[side] * d).sum(1) + own * (decoder[side] * d).sum(1), ((gram @ decoder[side]) * d).sum(1))
            for side in (other, has)
        ]
        (error, write), (error_own, write_own) = scales
        errors.append((error / error_own).numpy())
        written.append((write / write_own).numpy())
    return [*errors, *written]


def _sum(values: Tensor) -> Floats:
    return _numbers(values.double().sum(0))


def _numbers(values: Tensor) -> Floats:
    return values.double().cpu().numpy()
