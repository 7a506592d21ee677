"""What one parameter of a merged file says of ΔW: whether its bits are a replay's, at which scale, and what is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tv.verifying.replays import Replay, spacing

#: Standard errors from which a scale is another one: of thousands of modules none gets there by rounding.
BEYOND = 5.0
_BAND = 2**22  # entries that are taken to float64 at a time
_SAMPLE = 2**16  # entries on which replays are tried first
_NEARLY = 1.25  # a way must be off by so much less than one before it to be taken instead
_STEPS = 4  # of the search for a scale
_USUAL = (0.0, 2.0, -1.0)  # scales that are looked for first
_SURE = 8  # entries that must be off for bits to prove another scale, where rounding could explain each
_BLIND = 0.02  # how much of a step of the scale must be left by rounding


@dataclass(frozen=True)
class Match:
    """How far a file's values are from a replay's.

    Attributes:
        replay: How the sum was formed.
        off: Entries that differ.
        n: Entries.
        ulps: The largest difference, in steps of the coarser of the replay's dtypes.
    """

    replay: Replay
    off: int
    n: int
    ulps: float

    @property
    def share(self) -> float:
        """The share of entries that differ."""
        return self.off / max(self.n, 1)


@dataclass(frozen=True)
class Evidence:
    """One parameter: W, ΔW expected of it (None where it is not moved), and what the file holds.

    Attributes:
        weight: Of the base, as stored.
        delta: What is expected to be added, float32.
        merged: What the file holds, as stored.
        match: The replay that comes nearest.
    """

    weight: Float[Tensor, "..."]
    delta: Float[Tensor, "..."] | None
    merged: Float[Tensor, "..."]
    match: Match

    @property
    def coarse(self) -> torch.dtype:
        """The coarser of the dtypes that the file's values went through."""
        replay = self.match.replay
        return max((replay.stored, replay.computed), key=lambda dtype: torch.finfo(dtype).eps)

    @cached_property
    def expected(self) -> Float[Tensor, "..."]:
        """W + ΔW as the replay stores it."""
        return self.match.replay(self.weight, self.delta)

    @cached_property
    def seen(self) -> Float[Tensor, "..."]:
        """The file's values minus the base's, float32; 0 where both hold one bound that is infinite."""
        step = self.merged.float() - self.weight.float()
        return step.masked_fill_(step.isnan(), 0)

    @cached_property
    def norm(self) -> float:
        """‖ΔW‖; 0 where none is expected."""
        return 0.0 if self.delta is None else _norm(self.delta)

    @cached_property
    def is_swallowed(self) -> bool:
        """Whether the file's dtype cannot hold ΔW at all: W + ΔW is stored as W would be."""
        if self.delta is None:
            return False
        replay, part = self.match.replay, _part(self.weight)
        if _off(replay(self.weight[part], self.delta[part]), replay(self.weight[part], None)):
            return False  # most often a few rows say it
        return not _off(self.expected, replay(self.weight, None))

    @cached_property
    def scale(self) -> Scale:
        """The scale at which ΔW is in the file."""
        assert self.delta is not None
        return scale_of(self)

    def at(self, scale: float) -> Float[Tensor, "..."]:
        """W + scale · ΔW as the replay stores it."""
        return self.match.replay(self.weight, self.delta, scale)

    def left(self, scale: float = 1.0) -> Float[Tensor, "..."]:
        """What the file holds beyond W + scale · ΔW, float32, rounding included."""
        return self.seen if self.delta is None else self.seen - scale * self.delta

    def outliers(self, scale: float = 1.0) -> int:
        """Entries that lie farther from W + scale · ΔW than any way of rounding takes them."""
        n = 0
        for w, t, m in self._bands():
            moved = w if t is None else w + scale * t
            room = 1.01 * spacing(moved, self.coarse) + 0.51 * spacing(w, self.coarse)
            if t is not None and scale != 1:  # it may have been added in two steps
                room += 0.51 * spacing(w + t, self.coarse)
            room += 4 * torch.finfo(torch.float32).eps * w.abs()
            if t is not None:
                # The factors and their product may have been rounded too.
                rms = float(t.square().mean().sqrt()) * abs(scale)
                relative = 2 * torch.finfo(self.coarse).eps
                room += relative * (abs(scale) * t.abs() + rms)
            n += int(((m - moved).abs() > room).sum())
        return n

    def rounding_norm(self) -> float:
        """The norm of what rounding to the file's dtype adds, once."""
        total = 0.0
        for w, t, _ in self._bands():
            total += float(spacing(w if t is None else w + t, self.coarse).square().sum()) / 12
        return total**0.5

    def _bands(self) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        flat = [side.flatten().split(_BAND) for side in (self.weight, self.merged)]
        steps: Sequence[Tensor | None] = (
            [None] * len(flat[0]) if self.delta is None else self.delta.flatten().split(_BAND)
        )
        return [
            (w.double(), None if t is None else t.double(), m.double())
            for w, t, m in zip(flat[0], steps, flat[1], strict=True)
        ]


@dataclass(frozen=True)
class Scale:
    """The scale of ΔW in a file.

    Attributes:
        value: The estimate: 1 where ΔW was added once; NaN where the dtype swallows ΔW.
        error: Its standard error, from the entries that differ from W + value · ΔW.
        shift: How far the entries that differ from W + ΔW lie along ΔW, in standard deviations of random signs. Were
            the scale 1, they would be off by chance: few of them, all one way, prove nothing.
        exact: Whether W + value · ΔW is what the file holds, bit for bit.
    """

    value: float
    error: float
    exact: bool = False
    shift: float = math.inf

    def is_off(self) -> bool:
        """Whether it is another scale than 1, beyond rounding."""
        gap = abs(self.value - 1)
        return gap > 1e-6 and (self.exact or (gap > BEYOND * self.error and self.shift > BEYOND))


def matched(
    weight: Float[Tensor, "..."],
    delta: Float[Tensor, "..."] | None,
    merged: Float[Tensor, "..."],
    ways: Sequence[Replay],
) -> Evidence:
    """The evidence of one parameter, by the way of adding that comes nearest to the file.

    Args:
        weight: W as the base stores it.
        delta: ΔW, float32, or None.
        merged: What the file holds, of the same shape.
        ways: The ways to try; the first of several that come equally near is taken.
    """
    part = _part(weight)
    sample = weight[part], None if delta is None else delta[part], merged[part]
    off = [_off(way(*sample[:2]), sample[2]) for way in ways]
    likely = [way for way, n in zip(ways, off, strict=True) if n <= _NEARLY * min(off)]
    best = None
    for way in likely[:3]:
        value = way(weight, delta)
        n = _off(value, merged)
        if best is None or n * _NEARLY < best[0]:
            best = n, way, value
        if not n:
            break
    assert best is not None
    n, way, value = best
    ulps = _ulps(value, merged, weight, way) if n else 0.0
    return Evidence(weight, delta, merged, Match(way, n, merged.numel(), ulps))


def scale_of(evidence: Evidence) -> Scale:
    """The scale c at which W + c ΔW, rounded as the replay rounds, projects on ΔW as the file does.

    Rounding answers a step that is smaller than the spacing of the dtype by nothing or by too much; so what is compared
    are replays, and no unrounded sums. The error is that of the entries that are off, whose signs rounding draws.
    """
    delta = evidence.delta
    assert delta is not None
    square = dot(delta, delta)
    if not square or evidence.is_swallowed:
        return Scale(math.nan, math.inf)
    if not evidence.match.off:
        return Scale(1.0, 0.0, exact=True)

    def project(value: Tensor) -> float:
        return dot(value.float() - evidence.weight.float(), delta) / square

    def reply(scale: float) -> float:
        return project(evidence.at(scale))

    sure = bool(evidence.outliers()) or evidence.match.off >= _SURE
    for chosen in _USUAL:
        if sure and not _off(evidence.at(chosen), evidence.merged):
            return Scale(chosen, 0.0, exact=True)
    goal = project(evidence.merged)
    value, slope = goal, 1.0
    for _ in range(_STEPS):
        # Wide steps: a reply has steps of its own, where ΔW is small beside the dtype's spacing.
        slope = max(
            (reply(value + wide) - reply(value - wide)) / (2 * wide) for wide in (0.1 * max(1.0, abs(value)), 1)
        )
        if slope < _BLIND:
            return Scale(goal, math.inf)
        change = (goal - reply(value)) / slope
        value += change
        if abs(change) < 1e-6 * max(1.0, abs(value)):
            break
    error = _weighted(evidence.merged.float() - evidence.at(value).float(), delta) / square / slope
    off = evidence.merged.float() - evidence.expected.float()
    found = Scale(value, error, shift=abs(dot(off, delta)) / max(_weighted(off, delta), 1e-300))
    if not evidence.outliers() and not found.is_off():
        return found
    for digits in (1, 2, 3, 4):  # a scale that a person chose
        chosen = float(f"{value:.{digits}g}")
        if abs(chosen - value) < max(0.02 * abs(value), BEYOND * error) and not _off(
            evidence.at(chosen), evidence.merged
        ):
            return Scale(chosen, 0.0, exact=True)
    return found


def detectable(evidence: Evidence) -> float:
    """The smallest |c − 1| of a scale c that would be seen in this parameter; infinite where none would.

    Where the file is bit for bit a replay, the smallest step that changes a bit (of a sample of the entries); where
    entries are off, `BEYOND` standard errors.
    """
    if evidence.delta is None or evidence.is_swallowed:
        return math.inf
    if evidence.match.off:
        return BEYOND * max(evidence.scale.error, unrounded_error(evidence, evidence.scale.value))
    part = _part(evidence.weight)
    weight, delta = evidence.weight[part], evidence.delta[part]
    there = evidence.match.replay(weight, delta)
    for exponent in range(-14, 1):
        for step in (10 ** (exponent / 2), -(10 ** (exponent / 2))):
            if not _off(evidence.match.replay(weight, delta, 1 + step), there):
                break
        else:
            return float(10 ** (exponent / 2))
    return math.inf


def unrounded_error(evidence: Evidence, scale: float = 1.0) -> float:
    """The standard error of a scale that what lies between the file and W + scale · ΔW leaves, of random signs."""
    delta = evidence.delta
    assert delta is not None
    return _weighted(evidence.left(scale), delta) / dot(delta, delta)


def _weighted(error: Tensor, delta: Tensor) -> float:
    """√Σ(error · ΔW)²."""
    sides = zip(error.flatten().split(_BAND), delta.flatten().split(_BAND), strict=True)
    return sum(float((e.double() * t.double()).square().sum()) for e, t in sides) ** 0.5


def dot(one: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> float:
    """⟨one, other⟩ in float64, a band at a time."""
    bands = zip(one.flatten().split(_BAND), other.flatten().split(_BAND), strict=True)
    return sum(float(a.double().dot(b.double())) for a, b in bands)


def _part(weight: Tensor) -> Any:
    """The first rows, of a tensor or of one beside it, on which a question is asked first."""
    return slice(None, max(1, _SAMPLE // max(1, weight[:1].numel()))) if weight.ndim else ...


def _norm(value: Tensor) -> float:
    return dot(value, value) ** 0.5


def _off(value: Tensor, merged: Tensor) -> int:
    """Entries that differ; 0 and −0 are one number."""
    return int((value != merged.to(value.dtype)).sum())


def _ulps(value: Tensor, merged: Tensor, weight: Tensor, replay: Replay) -> float:
    """The largest difference in the steps that the dtype has at W: a sum that comes near 0 has finer ones."""
    coarse = max((replay.stored, replay.computed), key=lambda dtype: torch.finfo(dtype).eps)
    sides = zip(*(side.flatten().split(_BAND) for side in (value, merged, weight)), strict=True)
    return max(
        float(
            ((m.double() - v.double()).abs() / spacing(torch.maximum(v.double().abs(), w.double().abs()), coarse)).max()
        )
        for v, m, w in sides
    )
