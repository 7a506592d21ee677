"""What may be said of a change: changed, negligible, within noise, or cannot tell."""

from __future__ import annotations

import math
from typing import Literal

#: The four things that may be said of a mean change.
Said = Literal["changed", "negligible", "within noise", "cannot tell"]
#: No change of behaviour smaller than this counts, however a model computes.
LEAST_FLOOR = 1e-5


def said_of(change: float, lo: float, hi: float, p: float, *, floor: float, matters: float, still: bool = True) -> Said:
    """The verdict on a mean change.

    - "within noise": its size, or its whole interval, is at most what another precision of the base does. Its size
      alone is not enough where single prompts changed by more, in both directions.
    - "negligible": the whole interval is smaller than what matters (two one-sided tests at 2.5 %).
    - "changed": p < 0.05 and above the floor.
    - "cannot tell": none of these; more prompts would.

    Args:
        change: The mean change, in the metric's unit.
        lo: The lower end of its 95 % interval; NaN where there is none.
        hi: The upper end.
        p: p of no change, corrected for the family of claims that stand in one sentence.
        floor: The size that rounding alone reaches.
        matters: The smallest size that matters; 0 where every size does.
        still: Whether single prompts changed by no more than rounding changes them.

    Returns:
        One of the four.

    Source: D. J. Schuirmann (1987), J. Pharmacokinet. Biopharm. 15: two one-sided tests.

    Examples:
        >>> said_of(0.3, 0.1, 0.5, 0.004, floor=1e-5, matters=0.05)
        'changed'
        >>> said_of(0.01, -0.02, 0.04, 0.4, floor=1e-5, matters=0.05)
        'negligible'
    """
    if (still and abs(change) <= floor) or max(abs(lo), abs(hi)) <= floor:
        return "within noise"
    if max(abs(lo), abs(hi)) < matters:
        return "negligible"
    return "changed" if not math.isnan(p) and p < 0.05 else "cannot tell"
