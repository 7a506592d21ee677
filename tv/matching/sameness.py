"""Whether two models compute the same function, written differently: what is left of T once the writing is undone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tv.checkpoints.config_differences import config_differences
from tv.checkpoints.noise import PLAIN, coarsest
from tv.checkpoints.pairing import WeightPair
from tv.matching.reordered import Reordering

_WORDS = {
    "neurons": "neurons permuted or scaled",
    "shared_neurons": "shared experts' neurons permuted or scaled",
    "kv_groups": "key-value groups permuted",
    "queries": "query heads permuted",
    "norms": "norm gains moved into what reads them",
    "values": "value and output matrices in another basis",
    "keys": "query and key matrices in another basis",
}
_ROUNDS = 2.0  # times the expected rounding error, where a tensor was rounded again


@dataclass(frozen=True)
class Sameness:
    """What the reparametrisations explain of T, and what is left.

    Attributes:
        before: ‖T‖², of all parameters.
        after: The same once they are undone.
        changes: The layers of each change, by its kind in the table of `tv.align`.
        rounding: Whether all that is left is rounding: the two compute the same function.
        dtype: The coarser of the two stored dtypes.

    Examples:
        >>> Sameness(4.0, 1.0, {"norms": [0, 1, 2]}).sentence
        '75 % of ‖T‖² is a reparametrisation: norm gains moved into what reads them (layers 0–2)'
    """

    before: float
    after: float
    changes: Mapping[str, list[int]] = field(default_factory=dict)
    rounding: bool = False
    dtype: str = "F32"

    @property
    def explained(self) -> float:
        """The share of ‖T‖² that is a reparametrisation; NaN where T is zero."""
        return 1 - self.after / self.before if self.before else math.nan

    @property
    def sentence(self) -> str:
        """What was found, without a full stop."""
        changes = "; ".join(f"{_WORDS[kind]} ({_layers(layers)})" for kind, layers in self.changes.items())
        if not self.before:
            return "the two hold the same weights: T is zero"
        if self.rounding and not changes:
            return f"these two compute the same function, rounded to {self.dtype}"
        if self.rounding:
            rest = f"; what is left of T is the rounding of {self.dtype}" if self.after else ""
            return f"these two compute the same function, written differently: {changes}{rest}"
        if not changes:
            return "no part of T is a reparametrisation: it can be read as it is"
        share = 100 * self.explained
        said = f"{share:.3g} %" if share < 99.9 else "more than 99.9 %"
        return f"{said} of ‖T‖² is a reparametrisation: {changes}"

    def as_dict(self) -> dict[str, Any]:
        """It as JSON, with the sentence."""
        return asdict(self) | {"sentence": self.sentence}


def sameness(pair: WeightPair, order: Reordering, changes: Mapping[str, list[int]]) -> Sameness:
    """Compare all parameters as they are and with the reparametrisations undone.

    What is left is rounding where every parameter is the base's, rounded to the dtype that it is stored in, or lies
    within the rounding that undoing the changes carries along.
    """
    written = WeightPair(pair.base, order.checkpoint(), pair.facts)
    before, after = [], []
    rounding = not config_differences(pair.base.settings, pair.tuned.settings)
    for name in pair.base.names:
        before.append(_energy(pair.tuned.delta(name, pair.base)))
        touched = order.touches(name)
        after.append(_energy(written.tuned.delta(name, pair.base)) if touched else before[-1])
        if rounding and after[-1]:
            rounding = _only_rounded(pair, name) if not touched else _within(written, name, order, after[-1])
    dtype = coarsest((pair.base.dtype, pair.tuned.dtype))
    return Sameness(math.fsum(before), math.fsum(after), dict(changes), rounding, dtype)


def _energy(delta: Tensor) -> float:
    return float(delta.double().pow(2).sum())


def _only_rounded(pair: WeightPair, name: str) -> bool:
    """Whether a parameter of one side is the other's, rounded to the dtype that it is stored in."""
    own, other = pair.base.read(name), pair.tuned.read(name)
    plain = pair.tuned.base is None and {side.info(name).dtype for side in (pair.base, pair.tuned)} <= PLAIN
    alike = own.shape == other.shape and (
        torch.equal(own.to(other.dtype), other) or torch.equal(other.to(own.dtype), own)
    )
    return plain and alike


def _within(written: WeightPair, name: str, order: Reordering, left: float) -> bool:
    if not order.rounds(name):
        return _only_rounded(written, name)
    if not {side.info(name).dtype for side in (written.base, written.tuned)} <= PLAIN:
        return False
    size = float(written.base.read(name).double().norm())
    return math.sqrt(left) <= _ROUNDS * written.noise(name).of_weight * size


def _layers(layers: Iterable[int]) -> str:
    """Layer numbers as runs."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    said = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)
    return f"layer{'s' * (said != str(runs[0][0]))} {said}"
