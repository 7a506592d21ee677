"""How often the instrument is wrong: `python benchmarks/calibration.py [--draws 2000]`.

Three tables, as docs/measures.md shows them: how often printed intervals cover, how often claims are made where nothing
is true, and what is said of pairs of models that compute one function. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tv.stats.means import mean_interval
from tv.stats.proportions import share_change, share_interval

Floats = NDArray[np.float64]
#: (generator, (prompts, experiments)) → values of a true mean.
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
SIZES = (8, 12, 16, 24, 48)
COVERED, FALSE = 0.93, 0.06


@dataclass(frozen=True)
class Rate:
    """How often something happened in `of` experiments, and the bound on it."""

    what: str
    where: str
    rate: float
    of: int
    bound: float
    at_least: bool = False  # whether the bound is from below

    @property
    def holds(self) -> bool:
        """Whether the bound is met, within two standard errors of the simulation."""
        slack = 2 * math.sqrt(self.bound * (1 - self.bound) / max(self.of, 1))
        return self.rate >= self.bound - slack if self.at_least else self.rate <= self.bound + slack


def _sparse(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return (rng.random(shape) < 0.3) * rng.lognormal(size=shape)


#: What effects of prompts look like, with their true mean.
EFFECTS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(1, 1, shape), 1.0),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
    "lognormal": (lambda rng, shape: rng.lognormal(size=shape), math.exp(0.5)),
    "sparse: 70 % are 0": (_sparse, 0.3 * math.exp(0.5)),
}


def coverage(draws: int, seed: int = 0) -> Iterator[Rate]:
    """Of the intervals of means and of shares that are shown, how many cover."""
    rng = np.random.default_rng(seed)
    for n in SIZES:
        for name, (draw, true) in EFFECTS.items():
            found = mean_interval(draw(rng, (n, draws)))
            yield _covered(f"mean, {name}", f"{n} prompts", found.lo, found.hi, true)
        which = np.repeat(np.arange(n), 4)
        values = rng.normal(size=(n, draws))[which] + rng.normal(size=(len(which), draws))
        found = mean_interval(values, [str(i) for i in which])
        yield _covered("mean, clusters of 4", f"{n} clusters", found.lo, found.hi, 0.0)
        yield from _shares(rng, n, min(draws, 1000))


def _shares(rng: np.random.Generator, n: int, draws: int) -> Iterator[Rate]:
    before = rng.random((draws, n)) < 0.8
    after = np.where(rng.random((draws, n)) < 0.25, rng.random((draws, n)) < 0.4, before)
    ends = np.array([share_interval(row)[1:] for row in before]).T
    yield _covered("share of 80 %", f"{n} prompts", *ends, 0.8)
    ends = np.array([share_change(a, b)[1:] for a, b in zip(before, after, strict=True)]).T
    yield _covered("change of a share by −10 points", f"{n} prompts", *ends, -0.1)


def _covered(what: str, where: str, lo: Floats, hi: Floats, true: float) -> Rate:
    shown = ~np.isnan(lo)
    covered = (lo[shown] <= true) & (hi[shown] >= true)
    return Rate(what, where, float(covered.mean()), int(shown.sum()), COVERED, at_least=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    options = parser.parse_args()
    for rate in coverage(options.draws):
        print(rate.what, "|", rate.where, "|", f"{rate.rate:.3f}", rate.of, rate.holds)


if __name__ == "__main__":
    main()
