"""Norms, ranks and noise of one module's tuning vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tv.alignment import Energies

#: Relative rounding error of a stored dtype, ‖rounded − W‖/‖W‖ for weights spread over many binades (measured: 1.66e-3
#: in bfloat16; half as much for every bit more of mantissa).
ROUNDING = {
    "BF16": 1.66e-3,
    "F16": 1.66e-3 / 8,
    "F32": 1.66e-3 / 2**16,
    "F64": 0.0,
    "F8_E4M3": 2.66e-2,
    "F8_E5M2": 5.3e-2,
}
_ROWS = 4096


@dataclass(frozen=True)
class Geometry:
    """One module's tuning vector T against its pretrained weight W. Ranks are NaN for a norm gain."""

    rows: int
    cols: int
    weight_norm: float  # ‖W‖_F
    delta_norm: float  # ‖T‖_F
    relative_norm: float  # ‖T‖/‖W‖
    cosine: float  # of W and W + T
    cos_weight_delta: float  # of W and T: T scales W up (1) or down (−1)
    changed_fraction: float  # of entries, in the stored dtype
    noise_share: float  # of ‖T‖² that rounding to the stored dtype explains, at most 1
    stable_rank: float  # of T: ‖T‖_F²/‖T‖_2²
    effective_rank: float  # of T: exp(entropy of σ/Σσ)
    weight_stable_rank: float
    weight_effective_rank: float
    diagonal_energy: float  # Σ(u_iᵀ T v_i)²/‖T‖²: T rescales directions of W instead of turning them
    diagonal_energy_null: float  # k/(mn), k = min(m, n)


def geometry_of(
    weight: Float[Tensor, "..."],
    tuned: Float[Tensor, "..."],
    dtype: str,
    sigma: Float[Tensor, " r"] | None = None,
    energies: Energies | None = None,
) -> Geometry:
    """Measures of one module out of both weights, float32; `dtype` is the tuned one's as stored, in safetensors' words.

    `sigma` (W's singular values) and `energies` give the ranks; without them they are NaN. T = 0 gives zeros.
    """
    sums = torch.zeros(6, dtype=torch.float64)
    for w, t in zip(weight.split(_ROWS), tuned.split(_ROWS), strict=True):  # an embedding in float64 would not fit
        sums += _sums(w.double(), t.double())
    weight_norm, tuned_norm, delta_norm = sums[:3].sqrt().tolist()
    with_tuned, with_delta, changed = sums[3:].tolist()
    nan = math.nan
    ranks = (nan, nan, nan, nan, nan, nan)
    if sigma is not None and energies is not None:
        k = len(sigma)
        diagonal = float(energies.both.diagonal().sum())
        spectrum = energies.spectrum.sqrt()
        ranks = (*_ranks(spectrum), *_ranks(sigma), diagonal, k / weight.numel())
    rounding = ROUNDING.get(dtype, 0.0)
    return Geometry(
        weight.shape[0],
        weight.shape[1] if weight.ndim > 1 else 1,
        weight_norm,
        delta_norm,
        _ratio(delta_norm, weight_norm),
        _ratio(with_tuned, weight_norm * tuned_norm),
        _ratio(with_delta, weight_norm * delta_norm),
        changed / weight.numel(),
        min(1.0, _ratio(rounding * weight_norm, delta_norm) ** 2),
        *ranks,
    )


def _sums(weight: Float[Tensor, "..."], tuned: Float[Tensor, "..."]) -> Float[Tensor, "6"]:
    """‖W‖², ‖W + T‖², ‖T‖², ⟨W, W + T⟩, ⟨W, T⟩ and the number of entries that changed."""
    delta = tuned - weight
    products = (weight, weight), (tuned, tuned), (delta, delta), (weight, tuned), (weight, delta)
    return torch.stack([*((a * b).sum() for a, b in products), (delta != 0).double().sum()])


def _ranks(sigma: Float[Tensor, " r"]) -> tuple[float, float]:
    """(stable, effective) rank; (0, 0) of a zero matrix."""
    if float(sigma.max()) == 0:
        return 0.0, 0.0
    share = sigma / sigma.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return float(sigma.pow(2).sum() / sigma.max().pow(2)), float(entropy.exp())


def _ratio(value: float, of: float) -> float:
    return value / of if of else 0.0
