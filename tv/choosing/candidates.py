"""The points that a repair chooses among: fitted scales, and the methods that they are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from tv.choosing.crossfit import EACH, HALVES, Candidate, CrossFit, Half, Seen
from tv.choosing.fitting import Goal, fit
from tv.choosing.others import DENSITIES, LEFT, equally_large, intruders_of, trimmed, without_intruders
from tv.choosing.trial import Values
from tv.stats.means import Floats

#: What a gain counts beside a damage, both as shares of the whole: each weight gives a point of the curve.
TRADEOFFS = (32.0, 16.0, 8.0, 4.0, 2.0)
SCALES = tuple(round(1 - 0.05 * i, 2) for i in range(21))
#: Reverted sets that are tried, of a ranking, at most.
PREFIXES = 14
#: The fitted choice, and what it stands beside.
FITTED, REVERTS, SCALING, TRIMMING, INTRUDERS, RANDOM = (
    "fitted λ",
    "reverted parts",
    "plain scaling",
    "trimming",
    "intruders removed",
    "random choices",
)


def candidates(cross: CrossFit) -> tuple[dict[str, list[Candidate]], int]:
    """(the points of every method but the random one, how many intruder dimensions there are).

    Without an intruder there is no such method.
    """
    model, vector = cross.stands.model, cross.vector
    scaling = []
    for i, scale in enumerate(SCALES):
        scaling.append(cross.spread(scale, cross.even(scale)))
        cross.tell(SCALING, i + 1, len(SCALES))
    reverts = _reverts(cross)
    found = {FITTED: _fitted(cross, [*scaling, *reverts]), REVERTS: reverts, SCALING: scaling, TRIMMING: []}
    for i, density in enumerate(DENSITIES):
        found[TRIMMING].append(cross.placed(TRIMMING, density, partial(trimmed, model, vector, density)))
        cross.tell(TRIMMING, i + 1, len(DENSITIES))
    intruders, count = intruders_of(model, vector)
    if count:
        found[INTRUDERS] = []
        for i, left in enumerate(LEFT):
            put = partial(without_intruders, model, vector, intruders, left)
            found[INTRUDERS].append(cross.placed(INTRUDERS, left, put))
            cross.tell(INTRUDERS, i + 1, len(LEFT))
    for method in found.keys() & {TRIMMING, INTRUDERS}:
        found[method].append(Candidate(1.0, dict.fromkeys(EACH, cross.full), {}))
    return found, count


def random_choices(cross: CrossFit, chosen: Mapping[Half, Candidate], draws: int) -> list[Values]:
    """Random parts reverted, as much of ‖T‖² as the fitted choice of each half removes, on the other half's prompts."""
    found = []
    for draw in range(draws):
        seed = 1000 * cross.seed + draw
        scales = {half: equally_large(chosen[half].scales[half], cross.energy, seed) for half in HALVES}
        found.append(cross.held_out({half: cross.at_scales(scales[half]) for half in HALVES}))
        cross.tell(RANDOM, draw + 1, draws)
    return found


def reverted(cross: CrossFit, unit: int) -> Values:
    """T without one unit."""
    scales = cross.even(1.0)
    scales[unit] = 0.0
    return cross.at_scales(scales)


def _reverts(cross: CrossFit) -> list[Candidate]:
    """Units reverted one after the other: by each half, what undoes most damage for the gain that it costs first."""
    units = [int(i) for i in np.flatnonzero(cross.energy > 0)]
    alone = {}
    for n, i in enumerate(units):
        alone[i] = reverted(cross, i)
        cross.tell("revert effects", n + 1, len(units))
    counts = sorted({round(n) for n in np.linspace(0, len(units), min(PREFIXES, len(units) + 1))})
    by_half: dict[Half, list[Floats]] = {}
    for half, seen in cross.seen.items():
        worth = {i: _worth(*cross.shares(values, seen)) for i, values in alone.items()}
        order = sorted(units, key=lambda i, worth=worth: -worth[i])  # type: ignore[misc]
        by_half[half] = []
        for count in counts:
            scales = cross.even(1.0)
            scales[order[:count]] = 0.0
            by_half[half].append(scales)
    found = []
    for n, count in enumerate(counts):
        scales_of = {half: scales[n] for half, scales in by_half.items()}
        found.append(Candidate(float(count), {h: cross.at_scales(s) for h, s in scales_of.items()}, scales_of))
        cross.tell(REVERTS, n + 1, len(counts))
    return found


def _worth(kept: float, undone: float) -> float:
    """Damage undone for the gain lost; what costs nothing comes first."""
    return undone / max(1 - kept, 1e-3)


def _fitted(cross: CrossFit, starts: Sequence[Candidate]) -> list[Candidate]:
    """λ fitted on each half at every trade-off: from the best of what is there already, by the gradient.

    All of T is the last of them, so that one at least keeps what was asked.
    """
    scales: dict[float, dict[Half, Floats]] = {weight: {} for weight in TRADEOFFS}
    done = 0
    for half, seen in cross.seen.items():
        goal = _goal(cross, seen)
        earlier = [one.scales[half] for one in starts]
        for weight in TRADEOFFS:
            of_keep, of_restore = goal.weights(weight)

            def loss(point: Floats, of_keep: Floats = of_keep, of_restore: Floats = of_restore) -> float:
                values = cross.at_scales(point, followed=True)
                keep, restore = (cross.followed[name].sign * values[name] for name in ("keep", "restore"))
                return float((of_keep * keep).sum() + (of_restore * restore).sum())

            start = min(earlier, key=loss)
            place = {"tradeoff": weight, "start": start.tolist(), "sees": [seen[name].tolist() for name in seen]}
            found = cross.found(place, partial(_fit, cross, goal, weight, start))
            scales[weight][half] = found
            earlier.append(found)
            done += 1
            cross.tell("fits", done, len(TRADEOFFS) * len(cross.seen))
    fits = [
        Candidate(weight, {half: cross.at_scales(one) for half, one in by_half.items()}, by_half)
        for weight, by_half in scales.items()
    ]
    return [*fits, cross.spread(math.inf, cross.even(1.0))]


def _fit(cross: CrossFit, goal: Goal, weight: float, start: Floats) -> Floats:
    found = fit(cross.field, goal, weight, start)
    cross.field.restore()
    return found


def _goal(cross: CrossFit, seen: Seen) -> Goal:
    none, full = (cross.at_scales(cross.even(scale), followed=True) for scale in (0.0, 1.0))
    gain, damage = full["keep"] - none["keep"], none["restore"] - full["restore"]
    return Goal(cross.followed["keep"], cross.followed["restore"], seen["keep"], seen["restore"], gain, damage)
