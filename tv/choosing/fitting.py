"""Scales of units fitted to keep a gain and undo a damage, by the gradient through the live model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from tv.choosing.asked import Asked
from tv.choosing.landscape import Landscape
from tv.stats.means import Floats

#: What pulls a unit's λ to their mean, in units of the objective: few prompts cannot tell every part from noise.
PULL = 0.3
#: Steps and evaluations of one fit.
STEPS, EVALUATIONS = 8, 10


@dataclass(frozen=True)
class Goal:
    """What a fit sees: both sets on one half of their prompts, and the gain and the damage there."""

    keep: Asked
    restore: Asked
    of_keep: NDArray[np.bool_]  # the prompts that are seen
    of_restore: NDArray[np.bool_]
    gain: Floats  # (prompts,) of what is fitted to; its mean over the half is above 0
    damage: Floats

    def weights(self, tradeoff: float) -> tuple[Floats, Floats]:
        """What a value of each prompt counts in the loss: −`tradeoff` × gain kept − damage undone."""
        kept = self.of_keep / (self.of_keep.sum() * self.gain[self.of_keep].mean())
        undone = self.of_restore / (self.of_restore.sum() * self.damage[self.of_restore].mean())
        return -self.keep.sign * tradeoff * kept, -self.restore.sign * undone


def fit(landscape: Landscape, goal: Goal, tradeoff: float, start: Sequence[float] | Floats) -> Floats:
    """The scales (units,), each in 0…1, that maximise `tradeoff` × gain kept + damage undone − a pull to their mean.

    L-BFGS-B from `start`, a few steps: a local maximum of what one half of the prompts says.

    Source: R. H. Byrd et al. (1995), A limited memory algorithm for bound constrained optimization.
    """
    weights = goal.weights(tradeoff)

    def loss(scales: Floats) -> tuple[float, Floats]:
        landscape.to(scales)
        values, slope = landscape.gradient([(goal.keep, weights[0]), (goal.restore, weights[1])])
        total = sum(float(np.nansum(w * v)) for w, v in zip(weights, values, strict=True))
        apart = scales - scales.mean()
        pull = PULL * float((apart**2).mean())
        return total + pull, slope.ravel() + 2 * PULL * apart / len(scales)

    found = minimize(
        loss,
        np.asarray(start, np.float64),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1.0)] * len(start),
        options={"maxiter": STEPS, "maxfun": EVALUATIONS},
    )
    scales: Floats = np.clip(found.x, 0.0, 1.0)
    return scales
