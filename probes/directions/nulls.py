"""Pairs in which nothing was learnt: the base with itself in another precision, and with the base + noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from probes.attribution.forwards import Variant, swapped
from probes.attribution.swaps import Swaps
from probes.attribution.units import WHOLE
from probes.capture.noise_floor import twin_of
from probes.capture.pair import Pair

#: The base in another precision: what rounding alone does.
ROUNDED = "rounded"


@contextmanager
def null_pair(pair: Pair, null: str, draw: int = 0, seed: int = 0) -> Iterator[Pair]:
    """The base beside a model that has learnt nothing, while the context lasts.

    Args:
        pair: The real pair. A control's model takes the place of its tuned side until the context ends.
        null: "rounded", or a control: "random" and "shuffled" have T's norm in every parameter.
        draw: Which draw of the control.
        seed: Of the draws.

    Yields:
        A pair with the same base.
    """
    if null == ROUNDED:
        with twin_of(pair) as (both, _):
            yield both
    else:
        moved = Swaps(pair, seed, dict).of(Variant("base", (WHOLE,), null, draw))
        with swapped(pair.tuned, moved):
            yield pair
