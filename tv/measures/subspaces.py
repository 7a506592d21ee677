"""How W's singular values and subspaces change when T is added: from the Grams that SSA needs, without another pass.

With W = QΣVᵀ and W + T = Q'Σ'V'ᵀ (near side first), Q' comes from (W + T)(W + T)ᵀ = G + C + Cᵀ + H, and
VᵀV' = Σ⁻¹Qᵀ(G + Cᵀ)Q'Σ'⁻¹. Intruder dimensions: arXiv 2410.21228.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from tv.columns import Column
from tv.measures.declared import Row, of_weights
from tv.measures.decomposition import (
    Decomposition,
    Energies,
    eigenvectors,
    fixed_k,
    gram,
    inverse_of,
    leading_eigenvectors,
)
from tv.measures.part import Part

#: An intruder is one of this many leading singular vectors of W + T …
INTRUDER_TOP = 10
#: … whose cosine with every singular vector of W stays below this.
INTRUDER_COSINE = 0.5
#: Random rotations up to this size are kept for the next matrix of the shape: 8 bytes an entry.
_KEPT_TO = 512


@dataclass(frozen=True)
class Change:
    """W before and after T. Left is the output side, right the input side; subspaces hold 10 % of the dimension.

    Where T is 0 there is no after, and all of it is NaN.
    """

    spectral_shift: float  # ‖σ' − σ‖/‖σ‖
    kept_left: float  # mean cos² of the principal angles between the leading subspaces before and after: 1 = the same
    kept_right: float
    largest_angle_left: float  # degrees
    largest_angle_right: float
    intruders_left: float  # among the 10 leading singular vectors of W + T
    intruders_right: float
    intruders_null_left: float  # the mean of as many when T is turned at random on both sides
    intruders_null_right: float


@of_weights(
    Column("spectral_shift", "‖σ′ − σ‖/‖σ‖ of W's singular values before and after"),
    Column(
        "kept_left",
        "mean cos² of the principal angles between the leading 10 % of directions before and after, output side",
        words="subspace kept left",
    ),
    Column("kept_right", "the same on the input side", words="right"),
    Column("largest_angle_left", "the worst of these angles, output side", unit="degrees"),
    Column("largest_angle_right", "the same on the input side", unit="degrees"),
    Column(
        "intruders_left",
        "of the 10 leading singular vectors of W + T, those that resemble none of W's, output side",
        words="intruders left",
        null="intruders_null_left",
    ),
    Column("intruders_right", "the same on the input side", words="intruders right", null="intruders_null_right"),
    Column("intruders_null_left", "the mean of as many when T is turned at random", words="null"),
    Column("intruders_null_right", "the same on the input side", words="null"),
)
def change(part: Part) -> Row:
    """How the subspaces of a whole matrix change."""
    if not (part.is_matrix and part.is_whole):
        return {}
    return vars(change_of(part.decomposition, part.energies, seed=part.seed))


def change_of(decomposition: Decomposition, energies: Energies, draws: int = 1, seed: int = 0) -> Change:
    """Spectrum, subspaces and intruders of W + T against W's; `draws` random rotations of T for the intruders' null."""
    if not energies.total:
        return Change(*[math.nan] * len(fields(Change)))
    m, n = decomposition.weight.shape
    dims = (m, n) if decomposition.wide else (n, m)
    keep = [fixed_k(decomposition, dim) for dim in dims]
    after = _after(decomposition, energies.delta_gram, energies.cross.double(), max(*keep, INTRUDER_TOP))
    shift = float((after.sigma - decomposition.sigma).norm())
    size = float(decomposition.sigma.norm())
    angles = [_angles(overlap[:k, :k]) for overlap, k in zip((after.near, after.far), keep, strict=True)]
    intruders = _intruders(decomposition, after)
    draw = _kept if min(dims) <= _KEPT_TO else _drawn
    null = torch.zeros(2, dtype=torch.float64)
    for i in range(draws):
        turn = draw(min(dims), max(dims), seed + i, decomposition.sigma.device)
        turned = _after_turning(decomposition, energies, turn)
        null += torch.tensor(_intruders(decomposition, turned), dtype=torch.float64) / draws
    left, right = (0, 1) if decomposition.wide else (1, 0)
    return Change(
        spectral_shift=shift / size if size else 0.0,
        kept_left=angles[left][0],
        kept_right=angles[right][0],
        largest_angle_left=angles[left][1],
        largest_angle_right=angles[right][1],
        intruders_left=intruders[left],
        intruders_right=intruders[right],
        intruders_null_left=float(null[left]),
        intruders_null_right=float(null[right]),
    )


@dataclass(frozen=True)
class _After:
    """The decomposition of W + T, and the cosines of W's singular vectors (rows) with its leading ones (columns)."""

    sigma: Float[Tensor, " values"]  # the leading ones at least
    near: Float[Tensor, "r top"]
    far: Float[Tensor, "r top"]


def _after(
    decomposition: Decomposition, delta_gram: Float[Tensor, "r r"], cross: Float[Tensor, "r r"], top: int
) -> _After:
    q, sigma = decomposition.near, decomposition.sigma
    after = (q * sigma.pow(2)) @ q.T + cross + cross.T + delta_gram
    values, vectors = eigenvectors(after)
    leading = vectors.flip(1)[:, :top]
    return _cosines(decomposition, values.flip(0), q.T @ leading, q.T @ (cross.T @ leading))


def _cosines(
    decomposition: Decomposition,
    values: Float[Tensor, " values"],
    near: Float[Tensor, "r top"],
    crossed: Float[Tensor, "r top"],
) -> _After:
    """The far side out of W + T's squared singular values, the near side and QᵀCᵀ times the leading directions."""
    sigma = values.clamp(min=0).sqrt()
    far = decomposition.sigma[:, None] * near + decomposition.inverse[:, None] * crossed
    return _After(sigma, near, (far * inverse_of(sigma)[: near.shape[1]]).clamp(-1, 1))


def _angles(overlap: Float[Tensor, "k k"]) -> tuple[float, float]:
    """(mean cos², largest angle in degrees) between two subspaces, out of their bases' inner products."""
    cosines = torch.linalg.svdvals(overlap).clamp(max=1)
    return float(cosines.pow(2).mean()), math.degrees(math.acos(float(cosines.min())))


def _intruders(decomposition: Decomposition, after: _After) -> tuple[float, float]:
    """(near, far): how many of the leading vectors resemble none of W's."""
    rank = decomposition.rank
    top = min(INTRUDER_TOP, rank)
    near, far = (
        float((overlap[:rank, :top].abs().amax(0) < INTRUDER_COSINE).sum()) for overlap in (after.near, after.far)
    )
    return near, far


@dataclass(frozen=True)
class _Turn:
    """Uniform rotations U and V' of T's sides, as they are needed, float32."""

    near: Float[Tensor, "r r"]  # U
    overlap: Float[Tensor, "r r"]  # V'ᵀV


def _drawn(r: int, n: int, seed: int, device: torch.device) -> _Turn:
    """U is r × r and V' n × r, of which only V'ᵀV matters.

    With Z (n × r) standard normal, ZᵀV is normal, ZᵀZ − (ZᵀV)(ZᵀV)ᵀ is an independent Wishart matrix of n − r degrees,
    and V' = Z L⁻ᵀ with ZᵀZ = LLᵀ is uniform.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    u, triangle = torch.linalg.qr(normal(r, r).float())
    inside = normal(r, r)
    square = gram(inside, inside) + _wishart(r, n - r, generator).to(device)
    overlap = torch.linalg.solve_triangular(torch.linalg.cholesky(square), inside, upper=False)
    return _Turn(u * triangle.diagonal().sign(), overlap.float())


#: The same for small matrices: a model has many of one shape, and each draws the same.
_kept = lru_cache(maxsize=4)(_drawn)


def _after_turning(decomposition: Decomposition, energies: Energies, turn: _Turn) -> _After:
    """W + T where T has its singular values and random singular vectors: T = U S V'ᵀ, U and V' uniformly turned.

    All of it is seen from Q, where W's Gram is Σ²: H is US²Uᵀ and C is US(V'ᵀV)Σ.
    """
    turned, cross = _turned(decomposition, energies, turn)
    sigma = decomposition.sigma
    unit = float(torch.maximum(sigma.max().square(), turned.diagonal().max()))
    after = (sigma.square().diag() + cross + cross.T + turned) / unit
    values, near = leading_eigenvectors(after.float(), INTRUDER_TOP)  # of so few, float32 is enough
    return _cosines(decomposition, values.double() * unit, near.double(), cross.T @ near.double())


def _turned(
    decomposition: Decomposition, energies: Energies, turn: _Turn
) -> tuple[Float[Tensor, "r r"], Float[Tensor, "r r"]]:
    """QᵀHQ and QᵀCQ of a turned T; their large products are float32, with T's and W's sizes put on afterwards."""
    size = math.sqrt(float(energies.spectrum.max()))
    scaled = decomposition.near.float().T @ turn.near * (energies.spectrum.sqrt() / size).float()
    cross = (scaled @ turn.overlap).double() * size * decomposition.sigma
    return gram(scaled, scaled, torch.float32).double() * size**2, cross


def _wishart(r: int, degrees: int, generator: torch.Generator) -> Float[Tensor, "r r"]:
    """ZᵀZ for Z (degrees × r) standard normal: by Bartlett's decomposition where Z would be tall."""
    if degrees < r:
        z = torch.randn(degrees, r, generator=generator, dtype=torch.float64)
        return gram(z.T, z.T)
    lower = torch.randn(r, r, generator=generator, dtype=torch.float64).tril(-1)
    shape = (degrees - torch.arange(r, dtype=torch.float64)) / 2
    chi_square = 2 * torch._standard_gamma(shape, generator=generator)
    lower.diagonal().copy_(chi_square.sqrt())
    return gram(lower, lower)
