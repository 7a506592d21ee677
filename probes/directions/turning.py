"""Did tuning turn the direction that a probe reads, or is it the same one? Identical directions are the reference.

Two probes of one model, fitted on two halves of the clusters, have a cosine below 1 although their direction is the
same: each is noisy. So the cosine across models, half against other half, is divided by that within models.

Source: C. Spearman (1904): the correction for attenuation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.directions.labels import Label
from probes.directions.leaving_out import interval, kept
from probes.directions.linear_probes import fitted, weights

Floats = NDArray[np.float64]
#: The corrected cosine from which on two directions count as the same one: 26 degrees.
SAME = 0.9
#: Below this cosine between halves a probe's direction is too noisy to be compared.
RELIABLE = 0.1
#: Halvings that cosines are averaged over.
HALVINGS = 4

#: Groups of clusters that are left out in turn.
_GROUPS = 8

SAME_DIRECTION, MOVED, CANNOT_TELL = "same direction", "moved", "cannot tell"


@dataclass(frozen=True)
class Turn:
    """The probes of two models, as cosines of their weights; of several classes the mean over classes."""

    cosine: float  # both fitted on all prompts
    halves_base: float  # of two probes of the base, on a half of the clusters each
    halves_tuned: float
    across: float  # of a probe of the base on one half, and one of the tuned model on the other

    @property
    def corrected(self) -> float:
        """across / √(halves_base · halves_tuned): 1 for one direction on average; NaN where probes are too noisy."""
        if min(self.halves_base, self.halves_tuned) < RELIABLE:
            return math.nan
        return self.across / math.sqrt(self.halves_base * self.halves_tuned)


def turn(base: Floats, tuned: Floats, labels: tuple[Label, Label], penalty: float, seed: int) -> Turn:
    """The cosines of two models' probes.

    Args:
        base: (n, d) states.
        tuned: (n, d) of the other model on the same prompts.
        labels: Of the n prompts in the base, and in the tuned model.
        penalty: Of every probe.
        seed: Of the halvings.

    Returns:
        All cosines.
    """
    within: tuple[list[float], list[float]] = ([], [])
    across = []
    for draw in range(HALVINGS):
        halves = [held for _, held in labels[0].folds(2, seed + draw)]
        own = [
            [_direction(states[half], label.on(half), penalty) for half in halves]
            for states, label in zip((base, tuned), labels, strict=True)
        ]
        for cosines, (one, other) in zip(within, own, strict=True):
            cosines.append(_cosine(one, other))
        across += [_cosine(own[0][0], own[1][1]), _cosine(own[0][1], own[1][0])]
    whole = _cosine(*(_direction(s, label, penalty) for s, label in zip((base, tuned), labels, strict=True)))
    return Turn(whole, float(np.mean(within[0])), float(np.mean(within[1])), float(np.mean(across)))


def turn_interval(
    base: Floats, tuned: Floats, labels: tuple[Label, Label], penalty: float, seed: int, value: Turn
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The 95 % intervals of `cosine` and of `corrected`, by leaving out groups of clusters."""
    without = [
        turn(base[stay], tuned[stay], (labels[0].on(stay), labels[1].on(stay)), penalty, seed)
        for stay in kept(labels[0].clusters.tolist(), seed, _GROUPS)
    ]
    return (
        interval([each.cosine for each in without], value.cosine, -1.0, 1.0),
        interval([each.corrected for each in without], value.corrected, -1.0),
    )


def verdict(readable: bool, lo: float, hi: float, nulls: float) -> str:
    """What a corrected cosine with this interval says.

    Args:
        readable: Whether both models' probes read the label at all.
        lo: The lower end of the corrected cosine.
        hi: The upper end.
        nulls: The smallest corrected cosine of the base and what has learnt nothing; NaN where it was not measured.

    Returns:
        "same direction" where it is at least `SAME` all along the interval; "moved" where it is below `SAME` and below
        the nulls all along; else "cannot tell".

    Examples:
        >>> verdict(True, 0.95, 1.02, 0.99), verdict(True, 0.1, 0.5, 0.9), verdict(True, 0.1, 0.5, 0.3)
        ('same direction', 'moved', 'cannot tell')
    """
    if not readable or math.isnan(lo):
        return CANNOT_TELL
    if lo >= SAME:
        return SAME_DIRECTION
    return MOVED if hi < SAME and not hi >= nulls else CANNOT_TELL


def _direction(states: Floats, label: Label, penalty: float) -> Floats:
    """(classes, d): a row a class, of length 1; zeros for a class that is not there. One row for two, or a number."""
    probe = fitted(states, label, penalty)
    rows = max(1, len(label.classes)) if len(label.classes) != 2 else 1
    found = np.zeros((rows, states.shape[1]))
    there = np.unique(label.values).astype(int).tolist()
    if label.classes and len(there) < 2:
        return found
    raw, _ = weights(probe)
    if rows == 1:
        found[:] = raw
    elif len(there) == 2:
        found[there] = np.concatenate([-raw, raw])
    else:
        found[there] = raw
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-300)


def _cosine(one: Floats, other: Floats) -> float:
    cosines = (one * other).sum(1)
    known = one.any(1) & other.any(1)
    return float(cosines[known].mean()) if known.any() else math.nan
