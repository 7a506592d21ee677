"""What one parameter of a merged file is, in words: W + ΔW, or which ΔW it holds instead of that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.noise import ROUNDING
from tv.verifying.evidence import BEYOND, Evidence, dot, unrounded_error
from tv.verifying.grids import grid_of
from tv.verifying.replays import Replay, is_coarser

EQUAL, ROUNDED, SWALLOWED = "equal", "equal up to rounding", "equal, ΔW swallowed"
MISSING, PARTLY, DOUBLED = "missing", "missing in part", "doubled"
FLIPPED, SCALED = "sign flipped", "scaled"
TRANSPOSED, OTHER_MODULE, OTHER_FACTOR = "transposed", "of another module", "one factor of another"
TRUNCATED, OTHER_DELTA, ON_TOP = "truncated", "another ΔW", "more on top"
OTHER_BASE, REQUANTISED, TOUCHED = "of another base", "requantised", "touched elsewhere"
BESIDE = "changed beside ΔW"
ABSENT, ADDED, SHAPED, SETTINGS, BROKEN = "absent", "added", "of another shape", "other settings", "not finite"
#: What passes.
GOOD = frozenset({EQUAL, ROUNDED, SWALLOWED})

_RANK = 72  # directions that are looked at
_FEW, _SPARSE = 8, 0.002  # entries, and their share, that were changed by themselves
_USEFUL = 1.0  # a scale that is known no better than this is not known
_FOUND = 0.9  # the share of a change that must be explained by what is said of it


@dataclass(frozen=True)
class Named:
    """What a parameter is, and why: `word` is one of this module's constants."""

    word: str
    said: str


def named(
    evidence: Evidence,
    base: str,
    stored: str,
    scales: Mapping[float, str],
    others: Callable[[], Iterable[tuple[str, Tensor]]],
) -> Named:
    """What one parameter of a merged file is.

    Args:
        evidence: What was measured.
        base: The dtype that the base stores it in, as its files name it.
        stored: The same of the merged file.
        scales: What a scale would come from, by its value: √r where rsLoRA's scaling was taken.
        others: The ΔW of other parameters of the same shape, by name.
    """
    match = evidence.match
    if not match.off and is_coarser(match.replay, base):
        return Named(REQUANTISED, f"its values are {_dtype(match.replay.computed)}'s in a file of {stored}")
    if not match.off:
        if evidence.is_swallowed:
            return Named(SWALLOWED, f"{stored} cannot hold ΔW: with and without it the values are the same")
        return Named(EQUAL, f"bit for bit: {match.replay}")
    if is_coarser(match.replay, base) and (grid := _grid(evidence)) is not None:
        return Named(REQUANTISED, grid)
    if evidence.delta is None:
        return _unmoved(evidence, stored, others)
    return _moved(evidence, evidence.delta, stored, scales, others)


def _unmoved(evidence: Evidence, stored: str, others: Callable[[], Iterable[tuple[str, Tensor]]]) -> Named:
    if stored not in _PLAIN and _as_quantised(evidence, 0.0, stored):
        return Named(ROUNDED, f"the base's values as {stored} rounds them")
    if not evidence.outliers():
        return Named(ROUNDED, _off(evidence))
    if (grid := _grid(evidence)) is not None:
        return Named(REQUANTISED, grid)
    for name, other in others():
        if _explains(evidence, other):
            return Named(OTHER_MODULE, f"no ΔW is expected here, and it holds that of {name}")
    relative = dot(evidence.seen, evidence.seen) ** 0.5 / max(_size(evidence.weight), 1e-300)
    rows = _rows(evidence)
    return Named(TOUCHED, f"no ΔW is expected here, and {_off(evidence)}{rows}; ‖change‖ is {relative:.2g} of ‖W‖")


def _moved(
    evidence: Evidence,
    delta: Tensor,
    stored: str,
    scales: Mapping[float, str],
    others: Callable[[], Iterable[tuple[str, Tensor]]],
) -> Named:
    scale = evidence.scale
    if stored not in _PLAIN and not scale.is_off() and _as_quantised(evidence, 1.0, stored):
        return Named(ROUNDED, f"W + ΔW as {stored} rounds it, ΔW at {scale.value:.3g} ± {2 * scale.error:.1g}")
    if math.isnan(scale.value):
        return _touched_or_rounded(evidence)
    if not evidence.outliers(scale.value if scale.is_off() else 1.0):
        # A smaller change in the same spaces looks like a scale, where it is small beside the dtype's spacing.
        within = _within(evidence, delta)
        if math.isinf(scale.error):
            return Named(SWALLOWED, f"{stored} leaves too little of ΔW to see its scale; {_off(evidence)}")
        if within is not None or not scale.is_off() or _is_unbiased(evidence, delta):
            return within or Named(ROUNDED, _off(evidence))
        return _scaled(evidence, scales)
    if (grid := _grid(evidence)) is not None:
        return Named(REQUANTISED, f"{grid}; ΔW at {scale.value:.3g} ± {2 * scale.error:.1g}")
    if (partly := _partly(evidence)) is not None:
        return partly
    if (few := evidence.outliers()) <= max(_FEW, int(_SPARSE * delta.numel())):
        return Named(BESIDE, f"{few} of its {delta.numel():,} entries are others than those of W + ΔW{_rows(evidence)}")
    if (other := _other(evidence, delta, others)) is not None:
        return other
    within = _within(evidence, delta)
    if within is None and _in_spaces(evidence, delta) and scale.is_off():
        return _scaled(evidence, scales)
    return (
        within
        or _factor(evidence, delta)
        or _on_top(evidence)
        or _beside(evidence, f"ΔW is in it at {scale.value:.3g} ± {2 * scale.error:.1g}")
    )


def _partly(evidence: Evidence) -> Named | None:
    """W in some rows or columns, a head's say, and W + ΔW in all others, both bit for bit."""
    if evidence.seen.ndim != 2:
        return None
    without, whole = evidence.at(0.0) == evidence.merged, evidence.expected == evidence.merged
    for across, line in ((1, "row"), (0, "column")):
        lacking, there = without.all(across), whole.all(across)
        lines = (lacking & ~there).nonzero().flatten().tolist()
        if lines and bool((lacking | there).all()) and bool((there & ~lacking).any()):
            of = f"{len(lines)} of {len(there)} {line}s"
            return Named(PARTLY, f"{of} hold the base's own values: {line}{_ranges(lines)}; the rest is W + ΔW")
    return None


def _is_unbiased(evidence: Evidence, delta: Tensor) -> bool:
    """Whether the file is W + ΔW with an error that has nothing to do with ΔW, as stochastic rounding leaves it.

    It is not where another scale explains the bits.
    """
    scale = evidence.scale
    if scale.exact or int((evidence.at(scale.value) != evidence.merged).sum()) < 0.5 * evidence.match.off:
        return False
    gap = abs(dot(evidence.left(), delta)) / dot(delta, delta)
    error = unrounded_error(evidence)
    return gap < BEYOND * error < _USEFUL and not evidence.outliers()


def _scaled(evidence: Evidence, scales: Mapping[float, str]) -> Named:
    scale = evidence.scale
    how = ", bit for bit" if scale.exact else f" ± {2 * scale.error:.1g}"
    said = f"ΔW is in it at {scale.value:.4g}{how}"
    for value, word in ((0.0, MISSING), (2.0, DOUBLED), (-1.0, FLIPPED)):
        if abs(scale.value - value) <= max(BEYOND * scale.error, 1e-4):
            return Named(word, said if value else "the base's own values")
    for value, why in scales.items():
        if abs(scale.value - value) <= max(BEYOND * scale.error, 2e-3 * abs(value)):
            return Named(SCALED, f"{said}: {why}")
    return Named(SCALED, said)


def _other(evidence: Evidence, delta: Tensor, others: Callable[[], Iterable[tuple[str, Tensor]]]) -> Named | None:
    """ΔW in another layout, or of another parameter."""
    if delta.ndim == 2:
        turned = delta.T.reshape(delta.shape)
        if _explains(evidence, turned):
            return Named(TRANSPOSED, "ΔW is in it transposed")
        if _explains(evidence, -turned):
            return Named(TRANSPOSED, "−ΔW is in it transposed")
    for name, other in others():
        if _explains(evidence, other):
            return Named(OTHER_MODULE, f"it holds the ΔW of {name}")
    return None


def _explains(evidence: Evidence, other: Tensor) -> bool:
    """Whether what is seen is another ΔW, up to rounding."""
    size = dot(other, other) ** 0.5
    left = evidence.seen - other
    return bool(size) and dot(left, left) ** 0.5 < 2 * evidence.rounding_norm() + 0.1 * size


def _within(evidence: Evidence, delta: Tensor) -> Named | None:
    """A part of ΔW: a change in the spaces that ΔW spans, of a smaller rank."""
    spaces = _spaces(delta)
    if spaces is None or not _in_spaces(evidence, delta):
        return None
    left, _, right = spaces
    inner = left.T @ evidence.seen.double() @ right
    each = evidence.rounding_norm() / delta.numel() ** 0.5  # what rounding leaves in each of the r² products
    sizes = torch.linalg.svdvals(inner)
    rank = int((sizes > BEYOND * each * len(inner) ** 0.5).sum())
    # A direction is gone where ΔW has it above rounding, and the file has not.
    expected = torch.linalg.svdvals(left.T @ (evidence.expected.double() - evidence.weight.double()) @ right)
    visible = int((expected > 2 * BEYOND * each * len(inner) ** 0.5).sum())
    if 0 < rank < visible:
        return Named(TRUNCATED, f"{rank} of the {visible} directions of ΔW that rounding leaves to see are in it")
    return None


def _in_spaces(evidence: Evidence, delta: Tensor) -> bool:
    """Whether what is seen lies in the two spaces that a ΔW of low rank spans, but for rounding."""
    spaces = _spaces(delta)
    if spaces is None:
        return False
    left, _, right = spaces
    energy = _energy(evidence.seen)
    rest = energy - float((left.T @ evidence.seen.double() @ right).square().sum())
    return rest < 4 * evidence.rounding_norm() ** 2 + 0.01 * energy


def _factor(evidence: Evidence, delta: Tensor) -> Named | None:
    """A ΔW that shares one of its two spaces."""
    spaces = _spaces(delta)
    if spaces is None:
        return None
    left, _, right = spaces
    noise = evidence.rounding_norm()
    seen = evidence.seen.double()
    energy = max(_energy(evidence.seen) - noise**2, 0.0)
    if energy < noise**2 / 4:
        return None
    rank = left.shape[1]
    shares = []
    for projected, of in ((left.T @ seen, len(left)), (seen @ right, len(right))):
        shares.append((float(projected.square().sum()) - noise**2 * rank / of) / energy)
    if shares[1] > _FOUND and shares[0] < 0.5:
        return Named(OTHER_FACTOR, "its rows are ΔW's and its columns are not: B is of another adapter")
    if shares[0] > _FOUND and shares[1] < 0.5:
        return Named(OTHER_FACTOR, "its columns are ΔW's and its rows are not: A is of another adapter")
    return None


def _on_top(evidence: Evidence) -> Named | None:
    """A further change of low rank beside ΔW, or another ΔW of low rank in its place."""
    for scale, word, said in ((1.0, ON_TOP, "beside ΔW"), (0.0, OTHER_DELTA, "in place of ΔW")):
        left = evidence.left(scale)
        if left.ndim != 2 or min(left.shape) < 16:
            return None
        noise = evidence.rounding_norm()
        energy = _energy(left) - noise**2
        _, sizes, _ = _decomposed(left, min(_RANK, min(left.shape) // 2))
        edge = noise / left.numel() ** 0.5 * sum(size**0.5 for size in left.shape)
        rank = int((sizes > 1.2 * edge).sum())
        found = float(sizes[:rank].double().square().sum())
        if scale and abs(evidence.scale.value - 1) > 0.5 and evidence.scale.is_off():
            continue  # what is left of ΔW itself has a low rank too
        if 0 < rank < min(_RANK, min(left.shape) // 3) and found > _FOUND * energy:
            return Named(word, f"a change of rank {rank} is in it {said}")
    return None


def _touched_or_rounded(evidence: Evidence) -> Named:
    if not evidence.outliers():
        return Named(ROUNDED, _off(evidence))
    if (grid := _grid(evidence)) is not None:
        return Named(REQUANTISED, grid)
    return _beside(evidence, "its dtype swallows ΔW")


def _beside(evidence: Evidence, said: str) -> Named:
    left = _energy(evidence.left()) ** 0.5
    rounding = evidence.rounding_norm() / evidence.norm
    beside = f"‖rest‖ is {left / evidence.norm:.2g} of ‖ΔW‖, and rounding explains {rounding:.2g}"
    word = OTHER_DELTA if abs(evidence.scale.value) < 0.5 else BESIDE
    return Named(word, f"{said}; {beside}")


_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})


def _as_quantised(evidence: Evidence, scale: float, stored: str) -> bool:
    """Whether what is left beside ΔW is no more than a declared quantisation leaves."""
    return _energy(evidence.left(scale)) ** 0.5 < 1.5 * ROUNDING.get(stored, 0.0) * _size(evidence.weight)


def _grid(evidence: Evidence) -> str | None:
    """The grid that the file's values lie on, and those of W + ΔW in its dtype do not, in words."""
    value = evidence.merged
    expected = Replay(evidence.match.replay.stored)(evidence.weight, evidence.delta)
    grid = grid_of(value, expected)
    if grid is not None:
        return f"its values lie on a grid: {grid}"
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16):
        finer = torch.finfo(value.dtype).eps < torch.finfo(dtype).eps
        if finer and _share_in(value, dtype) == 1 and _share_in(expected, dtype) < 0.9:
            return f"its values are {_dtype(dtype)}'s"
    return None


def _share_in(value: Tensor, dtype: torch.dtype) -> float:
    wide = value.float()
    return float((wide.to(dtype).float() == wide).double().mean())


def _spaces(delta: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(U, σ, V) of a ΔW of low rank, float64; None of another."""
    if delta.ndim != 2 or min(delta.shape) < 2:
        return None
    left, sizes, right = _decomposed(delta, min(_RANK, *delta.shape))
    rank = int((sizes > 1e-5 * sizes[0]).sum())
    if not rank or rank > min(_RANK - 1, min(delta.shape) // 2):
        return None
    return left[:, :rank].double(), sizes[:rank].double(), right[:, :rank].double()


def _decomposed(matrix: Float[Tensor, "m n"], rank: int) -> tuple[Tensor, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, sizes, right = torch.svd_lowrank(matrix.float(), q=rank, niter=2)
    return left, sizes, right


def _energy(value: Tensor) -> float:
    return dot(value, value)


def _size(value: Tensor) -> float:
    return _energy(value.float()) ** 0.5


def _rows(evidence: Evidence) -> str:
    """Which rows of a matrix changed, where few did."""
    if evidence.seen.ndim != 2:
        return ""
    rows = (evidence.seen != 0).any(1).nonzero().flatten().tolist()
    if len(rows) > 8 or len(rows) > len(evidence.seen) // 4:
        return ""
    return f", in row{_ranges(rows)}"


def _ranges(lines: list[int]) -> str:
    """Rising numbers behind their noun: ` 17`, `s 0–19, 40`; of many ranges the first."""
    starts = [one for one in lines if one - 1 not in lines]
    ends = [one for one in lines if one + 1 not in lines]
    spans = [f"{a}" if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True)]
    return f"{'s' * (len(lines) > 1)} {', '.join(spans[:8])}{', …' if len(spans) > 8 else ''}"


def _off(evidence: Evidence) -> str:
    match = evidence.match
    share = f"{100 * match.share:.3g} %"
    return f"{share} of its entries are off, by up to {match.ulps:.3g} ulps ({match.replay})"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
