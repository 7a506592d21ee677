"""Graft and revert: one unit of the weights moved, one forward pass, nothing approximated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from probes.attribution.effects import BACKWARD, FORWARD, Effects
from probes.attribution.forwards import Swap, Told, from_model, values_under
from probes.attribution.metric import Metric
from probes.attribution.units import Unit, pieces
from probes.capture.pair import Pair
from tv.prompts.encoding import Batch


def graft(
    pair: Pair, units: Sequence[Unit], batches: Sequence[Batch], metric: Metric, told: Told | None = None
) -> Effects:
    """M(θ_pre + T_c) − M(θ_pre) for every unit c: what it does alone."""
    swaps = [from_model(pair.base, pair.tuned, pair.architecture, [unit]) for unit in units]
    start, found = values_under(pair.base, pair.architecture, swaps, batches, metric, told)
    return Effects("graft", FORWARD, tuple(units), prompts_of(batches), found - start)


def revert(
    pair: Pair, units: Sequence[Unit], batches: Sequence[Batch], metric: Metric, told: Told | None = None
) -> Effects:
    """M(θ_ft) − M(θ_ft − T_c) for every unit c: what the tuned model loses without it."""
    swaps = [from_model(pair.tuned, pair.base, pair.architecture, [unit]) for unit in units]
    start, found = values_under(pair.tuned, pair.architecture, swaps, batches, metric, told)
    return Effects("revert", BACKWARD, tuple(units), prompts_of(batches), start - found)


def graft_vector(
    pair: Pair,
    vector: Mapping[str, Tensor],
    units: Sequence[Unit],
    batches: Sequence[Batch],
    metric: Metric,
    control: str,
    told: Told | None = None,
) -> Effects:
    """The same with another tuning vector in T's place, by parameter: M(θ_pre + R_c) − M(θ_pre)."""
    names = dict(pair.base.named_parameters())

    def swap(unit: Unit) -> Swap:
        own = [piece.parameter for piece in pieces(pair.architecture, unit, names) if piece.parameter in vector]

        def tensors() -> dict[str, Tensor]:
            return {name: _stepped(names[name], vector[name]) for name in own}

        return Swap(tensors, unit.layer)

    start, found = values_under(pair.base, pair.architecture, [swap(unit) for unit in units], batches, metric, told)
    return Effects("graft", FORWARD, tuple(units), prompts_of(batches), found - start, control)


def prompts_of(batches: Sequence[Batch]) -> tuple[str, ...]:
    """The prompts' ids, in the order of the batches."""
    return tuple(item.prompt.id for batch in batches for item in batch.encoded)


def _stepped(parameter: Tensor, step: Tensor) -> Tensor:
    """parameter + step, of a grown vocabulary in the rows that both have."""
    moved = parameter.detach().clone()
    rows = min(len(moved), len(step)) if moved.ndim else None
    own = moved[:rows] if rows is not None else moved
    own += (step[:rows] if rows is not None else step).to(own)
    return moved
