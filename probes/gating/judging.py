"""From numbers and bounds to verdicts: two one-sided tests for each rule, corrected over all rules.

Two families are tested, each at 5 % by Holm's steps: "it is beyond its bound" (fail), and "it is within" (pass). So of
a whole file of rules both a false fail and a false pass are as rare as of one rule. Holm's steps end at one level; the
ends that are shown are of that level, and a verdict is what they say: passed where the upper one is below the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from probes.gating.estimates import Estimate
from tv.stats.families import holm

Verdict = Literal["pass", "fail", "cannot tell"]
LEVEL = 0.05


@dataclass(frozen=True)
class Bound:
    """What a number may be. `floor` is how far rounding alone moves it: nothing below that is beyond a bound."""

    at_most: float | None = None
    at_least: float | None = None
    floor: float = 0.0

    def p_pass(self, number: Estimate) -> float:
        """p of its not being within."""
        if not any(number.sampled):
            return float(not self._low(self._least_gain) <= number.value <= self._high(-math.inf))
        below = [] if self.at_most is None else [number.p_below(self.at_most)]
        above = [] if self.at_least is None else [number.p_above(self._low(self._least_gain))]
        return max([*below, *above])

    def p_fail(self, number: Estimate) -> float:
        """p of its not being beyond."""
        if not any(number.sampled):
            return float(self._low(-math.inf, self._most_loss) <= number.value <= self._high(self.floor))
        above = [] if self.at_most is None else [number.p_above(self._high(self.floor))]
        below = [] if self.at_least is None else [number.p_below(self._low(-math.inf, self._most_loss))]
        return min(1.0, min([*above, *below]) * (len(above) + len(below)))

    def _low(self, least: float, most: float = math.inf) -> float:
        return -math.inf if self.at_least is None else min(max(self.at_least, least), most)

    def _high(self, least: float) -> float:
        return math.inf if self.at_most is None else max(self.at_most, least)

    @property
    def _least_gain(self) -> float:
        """A gain counts from the floor on; a bound on both sides asks for none."""
        return self.floor if self.at_most is None else -math.inf

    @property
    def _most_loss(self) -> float:
        """A loss does too."""
        return -self.floor if self.at_least is not None and self.at_least <= 0 else math.inf

    def ends(self, number: Estimate, passing: float, failing: float, failed: bool) -> tuple[float, float]:
        """The interval that says the verdict, at the levels of both families."""
        if self.at_most is not None and self.at_least is not None:
            level = failing / 2 if failed else passing
            return number.lower(level), number.upper(level)
        low, high = (failing, passing) if self.at_most is not None else (passing, failing)
        return number.lower(low), number.upper(high)


@dataclass(frozen=True)
class Judged:
    """A verdict, the ends of the interval that says it, and both p, corrected."""

    verdict: Verdict
    lo: float
    hi: float
    p_pass: float
    p_fail: float


def judge(numbers: Sequence[Estimate], bounds: Sequence[Bound]) -> list[Judged]:
    """The verdicts of a file of rules.

    Args:
        numbers: What each rule is about.
        bounds: What it may be.

    Returns:
        One each. Of numbers without sampling p is 0 or 1, and they take no part in the correction.

    Source: D. J. Schuirmann (1987), J. Pharmacokinet. Biopharm. 15 (two one-sided tests); S. Holm (1979), Scand. J.
    Stat. 6.

    Examples:
        >>> from probes.gating.estimates import Exact
        >>> [judged.verdict for judged in judge([Exact(0.02), Exact(0.2)], [Bound(0.05), Bound(0.05)])]
        ['pass', 'fail']
    """
    pairs = list(zip(numbers, bounds, strict=True))
    tests = [_is_test(number, bound) for number, bound in pairs]
    passing, pass_level = _family([bound.p_pass(number) for number, bound in pairs], [test[0] for test in tests])
    failing, fail_level = _family([bound.p_fail(number) for number, bound in pairs], [test[1] for test in tests])
    judged = []
    for (number, bound), p_pass, p_fail in zip(pairs, passing, failing, strict=True):
        verdict: Verdict = "fail" if p_fail <= LEVEL else "pass" if p_pass <= LEVEL else "cannot tell"
        judged.append(Judged(verdict, *bound.ends(number, pass_level, fail_level, verdict == "fail"), p_pass, p_fail))
    return judged


def _is_test(number: Estimate, bound: Bound) -> tuple[bool, bool]:
    """Whether passing, and whether failing, is a test, and not yes or no."""
    above, below = number.sampled
    if bound.at_most is not None and bound.at_least is not None:
        return above or below, above or below
    return (below, above) if bound.at_least is None else (above, below)


def _family(ps: Sequence[float], tests: Sequence[bool]) -> tuple[list[float], float]:
    """p corrected over the tests, and the level at which Holm's steps end."""
    family = np.array([p for p, test in zip(ps, tests, strict=True) if test])
    corrected = iter(holm(family).tolist())
    stands = int((holm(family) <= LEVEL).sum())
    known = int((~np.isnan(family)).sum())
    return [next(corrected) if test else p for p, test in zip(ps, tests, strict=True)], LEVEL / max(1, known - stands)
