"""How N tuning vectors of one base compare: cosine, sign conflict, shared directions, each beside its null.

Sources: cosines of task vectors are arXiv 2212.04089 (§5), sign conflict is arXiv 2306.01708 (§3), the subspace
alignment of one task's update with another's is arXiv 2502.04959.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import combinations
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.adapters.live import base_beside
from tv.checkpoints.opening import Source, open_checkpoint
from tv.checkpoints.pairing import WeightPair, alike, open_pair
from tv.columns import Column, TableForm, keys
from tv.errors import InputError, choices
from tv.measures.decomposition import FIXED_FRACTION
from tv.measures.overlap import Angles, Directions, Inside, Overlap, component_products, cross_gram, directions, overlap
from tv.runtime.common_rows import common_rows
from tv.runtime.compute import Compute

Level = Literal["whole", "layer", "module"]
LEVELS: tuple[Level, ...] = ("whole", "layer", "module")
Row: TypeAlias = dict[str, Any]
#: What a run with several tuned models holds of them.
COSINES = TableForm(
    "cosines",
    rows="pair of tuning vectors, over the whole model or a layer",
    columns=(
        *keys("tuned"),
        Column("reference", "the other tuned model", "name"),
        Column("scope", "`whole` or `layer`", "name"),
        *keys("layer"),
        Column("cosine", "of the two T, signed", null=0.0, centre=0.0),
        Column("cosine_null_sd", "its standard deviation if signs were random"),
        Column("cosine_z", "the cosine in these", words="z", null=0.0, centre=0.0),
        Column(
            "sign_conflict",
            "share of opposite signs among the entries that both move",
            words="signs differ",
            null="sign_conflict_null",
        ),
        Column("sign_conflict_null", "of the two shares of positive entries", words="by chance"),
    ),
)
#: Entries that are worked on at a time: few enough that a processor's cache holds every step of them.
PIECE = 2**16
_NO_ANGLES = Angles(*[math.nan] * 6)
_NOT_INSIDE = Inside(*[math.nan] * 3)


def cosine(
    base: Source,
    tuned: Mapping[str, Source],
    *,
    level: Level = "module",
    fraction: float = FIXED_FRACTION,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """How tuning vectors of one base compare, by pair and scope: whole model, layer, module.

    Of all parameters, tied ones once:

    - `cosine`, signed; `cosine_null_sd`, its standard deviation if the signs were random and the magnitudes as they
      are, √Σa²b²/(‖a‖‖b‖) (1/√n where magnitudes are even); `cosine_z`, the cosine in these. NaN where a vector is zero
    - `cosine_shared_z`: the cosine in standard deviations of a stricter null, by which both vectors keep the directions
      of their matrices and only the signs of the singular components are random: two vectors that meet in the same
      subspace with unrelated coefficients score about 1. NaN unless `level` is "module"
    - `sign_conflict`: the share with opposite signs of the `sign_entries` that both move; `sign_conflict_null`:
      p(1 − q) + q(1 − p) of the two shares of positive entries, module by module. NaN where no entry counts
    - `conflict_energy`: the same share weighted by |a||b|; cosine = (1 − 2 · conflict_energy) Σ|a||b|/(‖a‖‖b‖)

    Of matrices only, with k = `fraction` of the smaller dimension (at least 1, at most the rank): principal angles of
    the k leading directions (`overlap_…` and `largest_angle_cos_…`, `left` for the output side, `right` for the input
    side) and `ssa_…` of each vector in the other's; see `tv.measures.overlap`. NaN elsewhere: a subspace belongs to one
    matrix.

    Args:
        base: Whatever `tv.open_checkpoint` opens.
        tuned: Two or more by name, each taken over `base`.
        level: Down to which scope: "whole", "layer" or "module".
        fraction: The share of the smaller dimension that counts as leading, above 0 and at most 1.
        compute: Where to compute, and how to report progress. Two T of one module are in memory at a time.

    Returns:
        A row per unordered pair (`a`, `b`) and scope: `scope layer module expert a b entries norm_a norm_b` and the
        measures above.

    Raises:
        InputError: Fewer than two vectors, another level, or a fraction outside (0, 1].
        CheckpointError: One does not belong to `base`.

    Source: arXiv 2212.04089 §5 (cosine), arXiv 2306.01708 §3 (sign conflict), arXiv 2502.04959 (subspace alignment).

    Examples:
        >>> tuned = {"medical": "data/models/medical", "math": "data/models/math"}
        >>> pairs = tv.cosine("data/models/base", tuned, level="whole")
        >>> pairs[["a", "b"]].values.tolist(), round(float(pairs.cosine[0]), 3)
        ([['medical', 'math']], 0.023)
    """
    if len(tuned) < 2:
        raise InputError(f"{len(tuned)} tuning vector: cosine compares two or more; pass several tuned sides")
    if not 0 < fraction <= 1:
        raise InputError(f"fraction {fraction}: a share of the dimension, above 0 and at most 1")
    if level not in LEVELS:
        raise InputError(f"no level {level!r}{choices(level, LEVELS)}")
    under = open_checkpoint(base_beside(base, *tuned.values()))
    under, *opened = alike([under, *(open_checkpoint(source, base=under) for source in tuned.values())])
    pairs = {name: open_pair(under, one) for name, one in zip(tuned, opened, strict=True)}
    pieces = _pieces(list(pairs.values()))
    sums: dict[tuple[str, str], dict[int, Sums]] = {names: {} for names in combinations(pairs, 2)}
    rows: list[Row] = []
    others: dict[tuple[str, str, Module | None], Sums] = {}  # of parameters that are no module, by their rows
    for i, piece in enumerate(pieces):
        for (a, b), piece_sums, shared in _compare(
            pairs, piece, fraction if level == "module" else None, compute.tensor_device
        ):
            layers = sums[a, b]
            layers[piece.layer] = layers.get(piece.layer, Sums()) + piece_sums
            if piece.is_other:
                place = a, b, piece.module
                others[place] = others.get(place, Sums()) + piece_sums
            elif piece.module is not None:
                rows.append(_row("module", a, b, piece_sums, piece.layer, piece.module) | _shared(shared))
        compute.tell("cosine", i + 1, len(pieces), piece.label)
    rows += [_row("module", a, b, of, row.layer, row) | _shared(None) for (a, b, row), of in others.items() if row]
    whole = [_row("whole", a, b, sum(layers.values(), Sums())) for (a, b), layers in sums.items()]
    by_layer = [_row("layer", a, b, layers[at], at) for (a, b), layers in sums.items() for at in sorted(layers)]
    scopes = (whole, by_layer, rows)[: LEVELS.index(level) + 1]
    frame = pd.DataFrame([row for scope in scopes for row in scope]).astype({"layer": "Int64"})
    frame.attrs["notes"] = list(dict.fromkeys(note for pair in pairs.values() for note in pair.facts.notes))
    frame.attrs["fingerprints"] = {"base": under.fingerprint()["content"]} | {
        name: pair.tuned.fingerprint()["content"] for name, pair in pairs.items()
    }
    return frame


@dataclass(frozen=True)
class Sums:
    """What adds up over the entries a, b of two tuning vectors."""

    entries: float = 0
    dot: float = 0
    square_a: float = 0
    square_b: float = 0
    square_both: float = 0  # Σ a²b²
    product: float = 0  # Σ |a||b|
    product_against: float = 0  # the part of it where the signs differ
    counted: float = 0  # entries where neither is zero
    against: float = 0  # of those, with signs that differ
    against_null: float = 0  # how many the two shares of positive entries lead to expect
    components: float = 0  # Σ a²b² of singular components (`component_products`), of entries where there are none

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(x + y for x, y in zip(astuple(self), astuple(other), strict=True)))

    @property
    def cosine(self) -> float:
        """⟨a, b⟩/(‖a‖‖b‖); NaN where one is zero."""
        size = math.sqrt(self.square_a * self.square_b)
        return self.dot / size if size else math.nan

    @property
    def z(self) -> float:
        """The cosine in standard deviations of entries with random signs."""
        return self.dot / math.sqrt(self.square_both) if self.square_both else math.nan

    @property
    def shared_z(self) -> float:
        """The cosine in standard deviations of singular components with random signs."""
        return self.dot / math.sqrt(self.components) if self.components else math.nan


def sums_of(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Sums:
    """Sums over two tensors of one shape."""
    return sums_from(counts_of(a, b), a.shape)


def counts_of(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> Float[Tensor, " 9"]:
    """What `sums_from` needs of two tensors of one shape, float64, a piece at a time. Counts of parts add up."""
    rows = max(1, PIECE // max(1, math.prod(a.shape[1:])))
    pieces = zip(a.split(rows), b.split(rows), strict=True)
    return torch.stack([_counts(x.flatten(), y.flatten()) for x, y in pieces]).sum(0)


def _counts(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " 9"]:
    sign_a, sign_b = a.sign().float(), b.sign().float()  # float32 counts up to 2²⁴
    moved_a, moved_b = sign_a.abs(), sign_b.abs()
    signs = sign_a.dot(sign_b), moved_a.dot(moved_b), sign_a.dot(moved_b), moved_a.dot(sign_b)
    a, b = a.double(), b.double()
    product = a * b
    sums = product.sum(), a.dot(a), b.dot(b), product.dot(product), product.clamp(max=0).sum()
    return torch.cat([torch.stack(sums), torch.stack(signs)])


def sums_from(counts: Float[Tensor, " 9"], shape: Sequence[int]) -> Sums:
    """The sums over tensors of this shape, whose `counts_of` add up to `counts`."""
    dot, square_a, square_b, square_both, negative, agreement, both, lean_a, lean_b = counts.tolist()
    positive_a, positive_b = (both + lean_a) / 2, (both + lean_b) / 2
    expected = (positive_a * (both - positive_b) + positive_b * (both - positive_a)) / both if both else 0.0
    return Sums(
        entries=float(math.prod(shape)),
        dot=dot,
        square_a=square_a,
        square_b=square_b,
        square_both=square_both,
        product=dot - 2 * negative,
        product_against=-negative,
        counted=both,
        against=(both - agreement) / 2,
        against_null=expected,
        components=square_both if len(shape) < 2 else math.nan if square_both else 0.0,
    )


@dataclass(frozen=True)
class _Piece:
    """A module or another row, or (with none) a parameter outside of every row: a bias; each parameter once."""

    layer: int
    parameter: str
    module: Module | None = None
    expert: int = -1  # which expert of a fused parameter outside of every module

    @property
    def label(self) -> str:
        return f"{self.module.name} {self.layer}" if self.module is not None else self.parameter

    @property
    def is_other(self) -> bool:
        return self.module is not None and self.module.kind in ("vector", "group")

    def delta(self, pair: WeightPair) -> Float[Tensor, "..."]:
        if self.module is not None and not self.is_other:
            return pair.delta(self.module)
        return torch.atleast_1d(pair.tuned.delta(self.parameter, pair.base, self.expert))


def _pieces(pairs: list[WeightPair]) -> list[_Piece]:
    """What every pair can read."""
    first = pairs[0]
    modules = [m for m in first.modules if not m.tied and all(m in pair.modules for pair in pairs)]
    covered = {module.parameter for module in modules}
    readable = set(first.base.names).intersection(*(pair.tuned.names for pair in pairs))
    others = [name for name in first.base.names if name in readable and name not in covered]
    pieces = [_Piece(module.layer, module.parameter, module) for module in modules]
    rows = first.base.architecture.others
    for name in others:
        layer, shape = first.base.architecture.component_of(name)[0], first.base.info(name).shape
        row = next((row for row in rows if f"{name}.".startswith(f"{row.parameter}.")), None)
        pieces += [_Piece(layer, name, row, expert=i) for i in (range(shape[0]) if len(shape) > 2 else [-1])]
    return pieces


def _compare(
    pairs: Mapping[str, WeightPair], piece: _Piece, fraction: float | None, device: str
) -> Iterator[tuple[tuple[str, str], Sums, Overlap | None]]:
    """Every two vectors on one piece. Of the others only what has the size of a Gram is kept between two reads."""
    names = list(pairs)
    cached: dict[str, Directions] = {}
    for i, a in enumerate(names[:-1]):
        first = piece.delta(pairs[a]).to(device)
        for b in names[i + 1 :]:
            second = piece.delta(pairs[b]).to(device)
            x, y = common_rows(first, second)
            sums, shared = sums_of(x, y), None
            if fraction is not None and piece.module is not None and not piece.is_other and x.ndim == 2:
                sides, cross = (_kept(cached, a, x), _kept(cached, b, y)), cross_gram(x, y)
                shared = overlap(*sides, cross, fraction)
                sums = replace(sums, components=component_products(*sides, cross))
            del second, x, y
            yield (a, b), sums, shared


def _kept(cached: dict[str, Directions], name: str, delta: Float[Tensor, "m n"]) -> Directions:
    if name not in cached or cached[name].shape != delta.shape:
        cached[name] = directions(delta)
    return cached[name]


def _row(scope: Level, a: str, b: str, sums: Sums, layer: int | None = None, module: Module | None = None) -> Row:
    norms = math.sqrt(sums.square_a), math.sqrt(sums.square_b)
    size = norms[0] * norms[1]
    return {
        "scope": scope,
        "layer": layer,
        "module": module.name if module is not None else "all",
        "expert": module.expert if module is not None else -1,
        "a": a,
        "b": b,
        "entries": int(sums.entries),
        "norm_a": norms[0],
        "norm_b": norms[1],
        "cosine": sums.cosine,
        "cosine_null_sd": math.sqrt(sums.square_both) / size if size else math.nan,
        "cosine_z": sums.z,
        "cosine_shared_z": sums.shared_z,
        "sign_conflict": _share(sums.against, sums.counted),
        "sign_conflict_null": _share(sums.against_null, sums.counted),
        "sign_entries": int(sums.counted),
        "conflict_energy": _share(sums.product_against, sums.product),
    }


def _shared(shared: Overlap | None) -> Row:
    """The columns of matrices."""
    row: Row = {"k_a": 0, "k_b": 0} if shared is None else {"k_a": shared.k_a, "k_b": shared.k_b}
    for side in ("left", "right"):
        angles = getattr(shared, side, _NO_ANGLES)
        row[f"overlap_{side}"] = angles.overlap
        row |= {f"overlap_{side}_{name}": getattr(angles, f"overlap_{name}") for name in ("null", "lift", "kappa", "z")}
        row[f"largest_angle_cos_{side}"] = angles.largest_angle_cos
        for order in ("a_in_b", "b_in_a"):
            inside = getattr(shared, f"{side}_{order}", _NOT_INSIDE)
            row[f"ssa_{side}_{order}"] = inside.ssa
            row |= {f"ssa_{side}_{order}_{name}": getattr(inside, f"ssa_{name}") for name in ("null", "z")}
    return row


def _share(part: float, of: float) -> float:
    return part / of if of else math.nan
