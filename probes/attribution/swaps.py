"""The weights of a variant: parts of the other model, or of a control vector, in place of a model's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial

from torch import Tensor

from probes.attribution.forwards import Swap, Variant, from_model
from probes.attribution.subspaces import Bases, moved_within
from probes.attribution.units import pieces
from probes.capture.pair import Pair
from tv.architecture.values import values_of
from tv.arithmetic.controls import control
from tv.checkpoints.extraction import extract
from tv.checkpoints.vector import TuningVector
from tv.runtime.common_rows import common_rows
from tv.runtime.seeds import seed_of


class Swaps:
    """What every variant of a pair swaps. `make_bases` makes the pretrained subspaces that a part is of."""

    def __init__(self, pair: Pair, seed: int, make_bases: Callable[[], Bases]) -> None:
        self._pair, self._seed, self._make_bases = pair, seed, make_bases

    def of(self, variant: Variant) -> Swap:
        """The parameters that it changes, made on demand."""
        if variant.part:
            return moved_within(self._pair, self._bases, variant, self._seed)
        if variant.control:
            return self._by_control(variant)
        models = self._pair.models if variant.model == "base" else self._pair.models[::-1]
        return from_model(*models, self._pair.architecture, variant.units)

    def _by_control(self, variant: Variant) -> Swap:
        """The base, moved by a control vector; a draw is made from its number alone."""
        before = values_of(self._pair.base)
        seed = self._seed if variant.draw == 0 else seed_of(f"{self._seed} {variant.draw}")
        vector = control(self._vector, variant.control, seed)
        moved = [piece.parameter for unit in variant.units for piece in pieces(self._pair.architecture, unit, before)]
        names = [name for name in dict.fromkeys(moved) if name in vector.shapes]
        return Swap(partial(_stepped, before, vector, names), min(unit.layer for unit in variant.units))

    @cached_property
    def _vector(self) -> TuningVector:
        return extract(self._pair.base, self._pair.tuned)

    @cached_property
    def _bases(self) -> Bases:
        return self._make_bases()


def _stepped(before: Mapping[str, Tensor], vector: TuningVector, names: list[str]) -> dict[str, Tensor]:
    """Each parameter + its step; with a grown vocabulary, only in the rows that both have."""
    after = {}
    for name in names:
        moved = before[name].detach().clone()
        there, step = common_rows(moved, vector[name])
        there += step.to(there)
        after[name] = moved
    return after
