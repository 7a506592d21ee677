"""Norms, ranks and entries of one module's tuning vector."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tv.columns import Column
from tv.measures.declared import MEASURES, Row, of_weights, weight_table
from tv.measures.part import Part

#: The share of entries that counts as large, or as small, when the update is compared with the weights' magnitudes.
MAGNITUDE_SHARE = 0.10
_STORED = {"BF16": torch.bfloat16, "F16": torch.float16}
_PIECE = 2**17  # entries that are taken to float64 at a time: memory for more is fetched anew each time
_SAMPLE = 2**20  # entries that a quantile is read from


@dataclass(frozen=True)
class Entries:
    """What the entries of a pretrained weight W and of its tuning vector T say."""

    weight_norm: float  # ‖W‖_F
    delta_norm: float  # ‖T‖_F
    relative_norm: float  # ‖T‖/‖W‖
    cosine: float  # of W and W + T
    cos_weight_delta: float  # of W and T: T scales W up (1) or down (−1)
    changed_fraction: float  # of entries that differ once both sides are rounded to the stored dtype
    changed_fraction_bf16: float  # the same for bfloat16: what would be left of the change in a bfloat16 checkpoint
    large_overlap: float  # of the 10 % of entries that moved most, the share among the 10 % with the largest |W|
    large_overlap_null: float  # that share among all entries
    small_overlap: float  # the same for the 10 % with the smallest |W|
    small_overlap_null: float


@dataclass(frozen=True)
class Ranks:
    """How many directions a matrix uses."""

    stable_rank: float  # ‖·‖_F²/‖·‖_2²
    effective_rank: float  # exp(entropy of σ/Σσ)
    participation_ratio: float  # (Σσ²)²/Σσ⁴


@weight_table(
    "weights",
    rows="module, head of a module, bias, other parameter, or group of parameters",
    columns=(
        Column(
            "kind",
            "a matrix, `linear` or `embed`; `norm`, `bias`; another parameter, `vector`; all of a part, `group`",
            "name",
        ),
        Column("rows", "of W: the output side; a `vector`'s first dimension; of a `group` how many tensors", "int32"),
        Column("cols", "of W: the input side; a `vector`'s other dimensions as one; 1 where there is none", "int32"),
        Column("tied", "the same parameter as the embedding's: one matrix, whose effects are `embed`'s", "bool"),
        Column("numbers", "how many entries W has; of a `group` those of all its tensors", "int64", since=6),
    ),
)
def weights(part: Part, *, measures: Sequence[str] = ()) -> Iterator[Row]:
    """Every registered measure of a part, or those of some names, in one row."""
    rows, cols = (*part.weight.shape, 1)[:2]
    row = {"kind": part.kind, "rows": rows, "cols": cols, "tied": part.of.tied and part.kind != "bias"}
    row["numbers"] = part.weight.numel()
    for name in measures or MEASURES:
        row |= MEASURES.one(name).function(part)
    yield row


@of_weights(
    Column("weight_norm", "‖W‖, Frobenius"),
    Column("delta_norm", "‖T‖, Frobenius", words="‖T‖"),
    Column("relative_norm", "‖T‖/‖W‖", words="relative norm ‖T‖/‖W‖", role="weight"),
    Column("cosine", "of W and W + T", words="cosine(W_base, W_tuned)"),
    Column(
        "cos_weight_delta",
        "cosine of W and T: T scales W up (1) or down (−1); null where T is 0",
        words="cos(W, T)",
        centre=0.0,
    ),
    Column("changed_fraction", "of entries that differ once both sides are rounded to the coarser stored dtype"),
    Column("changed_fraction_bf16", "the same in bfloat16"),
    Column("noise_share", "of ‖T‖² that rounding explains", words="noise share"),
    Column(
        "large_overlap",
        "of the 10 % of entries that moved most, the share among the 10 % with the largest |W|",
        words="moved most: among the largest",
        null="large_overlap_null",
    ),
    Column("large_overlap_null", "that share among all entries"),
    Column(
        "small_overlap",
        "the same among the 10 % with the smallest |W|",
        words="among the smallest",
        null="small_overlap_null",
    ),
    Column("small_overlap_null", "that share among all entries"),
)
def entries(part: Part) -> Row:
    """What the entries of W and T say."""
    measured = entries_of(part.weight, part.delta, part.dtype)
    return vars(measured) | {"noise_share": part.noise.share(measured.weight_norm, measured.delta_norm)}


@of_weights(
    Column("stable_rank", "of T, ‖·‖_F²/‖·‖_2²", words="stable rank of T"),
    Column("effective_rank", "of T, exp(entropy of σ/Σσ)"),
    Column("participation_ratio", "of T, (Σσ²)²/Σσ⁴"),
    Column("weight_stable_rank", "of W"),
    Column("weight_effective_rank", "of W"),
    Column("weight_participation_ratio", "of W"),
)
def ranks(part: Part) -> Row:
    """How many directions T and W use."""
    if not part.is_matrix:
        return {}
    of_weight = vars(ranks_of(part.decomposition.sigma))
    return vars(ranks_of(part.energies.spectrum.sqrt())) | {f"weight_{name}": at for name, at in of_weight.items()}


@of_weights(
    Column("diagonal_energy", "Σ(uᵢᵀTvᵢ)²/‖T‖²: T scales W's own singular directions", null="diagonal_energy_null"),
    Column("diagonal_energy_null", "min(m, n)/(mn): of a T with no preferred direction"),
)
def amplification(part: Part) -> Row:
    """How much of T scales the singular directions that W has."""
    if not part.is_matrix:
        return {}
    return {
        "diagonal_energy": float(part.energies.diagonal.sum(dtype=torch.float64)) if part.energies.total else math.nan,
        "diagonal_energy_null": len(part.decomposition.sigma) / part.weight.numel(),
    }


def entries_of(weight: Float[Tensor, "..."], delta: Float[Tensor, "..."], dtype: str = "F32") -> Entries:
    """Measures of W = `weight` and T = `delta`, float32 in, sums in float64 a piece at a time.

    Where T is 0 its cosine with W, and where its largest entries lie, are NaN.
    `dtype` is the coarser of the two sides' stored dtypes, in safetensors' words.
    """
    stored = _STORED.get(dtype, torch.float32)
    small, large = _quantiles(weight, MAGNITUDE_SHARE, 1 - MAGNITUDE_SHARE)
    limits, (moved,) = (large, small), _quantiles(delta, 1 - MAGNITUDE_SHARE)
    sums = torch.zeros(10, dtype=torch.float64, device=weight.device)
    for w, t in zip(weight.reshape(-1).split(_PIECE), delta.reshape(-1).split(_PIECE), strict=True):
        sums += _sums(w, t, stored, limits, moved)
    weight_square, delta_square, cross, changed, changed_bf16, large, small, top, top_large, top_small = sums.tolist()
    n = weight.numel()
    weight_norm, delta_norm = math.sqrt(weight_square), math.sqrt(delta_square)
    tuned_norm = math.sqrt(max(0.0, weight_square + 2 * cross + delta_square))
    return Entries(
        weight_norm=weight_norm,
        delta_norm=delta_norm,
        relative_norm=_ratio(delta_norm, weight_norm),
        cosine=_ratio(weight_square + cross, weight_norm * tuned_norm),
        cos_weight_delta=_ratio(cross, weight_norm * delta_norm, of_nothing=math.nan),
        changed_fraction=changed / n,
        changed_fraction_bf16=changed_bf16 / n,
        large_overlap=_ratio(top_large, top, of_nothing=math.nan),
        large_overlap_null=large / n,
        small_overlap=_ratio(top_small, top, of_nothing=math.nan),
        small_overlap_null=small / n,
    )


def ranks_of(sigma: Float[Tensor, " r"]) -> Ranks:
    """Ranks out of a matrix's singular values; NaN for a zero matrix."""
    if float(sigma.max()) == 0:
        return Ranks(math.nan, math.nan, math.nan)
    energy, share = sigma.pow(2), sigma / sigma.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return Ranks(
        stable_rank=float(energy.sum() / energy.max()),
        effective_rank=float(entropy.exp()),
        participation_ratio=float(energy.sum().pow(2) / energy.pow(2).sum()),
    )


def _sums(
    weight: Float[Tensor, " n"],
    delta: Float[Tensor, " n"],
    stored: torch.dtype,
    limits: tuple[float, float],
    moved: float,
) -> Float[Tensor, "10"]:
    size, top = weight.abs(), delta.abs() > moved
    large, small = size > limits[0], size <= limits[1]
    tuned = weight + delta
    changed_bf16 = weight.bfloat16() != tuned.bfloat16()
    changed = changed_bf16 if stored == torch.bfloat16 else weight.to(stored) != tuned.to(stored)
    counts = (
        *(changed, changed_bf16),
        *(large, small, top, top & large, top & small),
    )
    w, t = weight.double(), delta.double()
    products = torch.stack([w.dot(w), t.dot(t), w.dot(t)])
    return torch.cat([products, torch.stack([c.count_nonzero() for c in counts]).double()])


def _quantiles(tensor: Float[Tensor, "..."], *shares: float) -> list[float]:
    """The magnitudes below which these shares of the entries lie, read off evenly spaced entries."""
    flat = tensor.reshape(-1)
    step = -(-len(flat) // _SAMPLE)
    step += step > 1 and step % 2 == 0  # an even step would keep to some columns of a matrix with an even width
    sample = flat[::step].abs().cpu().numpy()
    places = [max(1, math.ceil(share * len(sample))) - 1 for share in shares]
    # One at a time: numpy has vector instructions for that, and takes a tenth of the time.
    return [float(np.partition(sample, place)[place]) for place in places]


def _ratio(value: float, of: float, of_nothing: float = 0.0) -> float:
    return value / of if of else of_nothing
