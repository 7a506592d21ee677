"""The metric under many variants of one model, each a few parameters swapped for a forward pass and put back.

A block before the first swapped parameter cannot change, so its output of the plain pass is reused instead of computed
again: on average half of every forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from probes.attribution.metric import Metric
from probes.attribution.units import Unit, pieces, replaced
from probes.capture.hooks.turns import together
from probes.capture.skipping import recording, skipping
from tv.architecture.anatomy import Architecture
from tv.architecture.values import values_of
from tv.checkpoints.streamed import is_streamed
from tv.prompts.encoding import Batch

Floats = NDArray[np.float64]
#: Of a pair.
Model = Literal["base", "tuned"]
#: What of T lies inside the pretrained subspaces, or outside them.
Part = Literal["inside", "outside"]
#: Progress callback: (forwards over the prompts done, total).
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Variant:
    """One model whose metric is wanted, as data: it can be compared, pickled and named in a journal.

    It starts from one model of the pair. The weights of `units` are taken from the other. With a `control`, they are
    moved by that draw of a control vector instead; with a `part`, only by what of T (or of the control) lies inside or
    outside the pretrained subspaces. Without units it is the model as it is. The order of units does not matter.
    """

    model: Model
    units: tuple[Unit, ...] = ()
    control: str = ""
    draw: int = 0
    part: Part | Literal[""] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(sorted(self.units, key=astuple)))


@dataclass(frozen=True)
class Swap:
    """A variant's parameters, made on demand. No block before `first` has any of them."""

    tensors: Callable[[], Mapping[str, Tensor]]
    first: int


def from_model(
    model: PreTrainedModel, other: PreTrainedModel, architecture: Architecture, units: Sequence[Unit]
) -> Swap:
    """`model` with these units' weights taken from `other`."""
    names = values_of(model)
    wanted = [piece for unit in units for piece in pieces(architecture, unit, names)]

    def tensors() -> dict[str, Tensor]:
        return replaced(values_of(model), values_of(other), wanted)

    return Swap(tensors, min((unit.layer for unit in units), default=architecture.n_layers))


@contextmanager
def swapped(model: PreTrainedModel, swap: Swap) -> Iterator[None]:
    """`model` with these parameters in place of its own while the context lasts.

    Parameters are swapped, not copied over: leaving the context puts the same tensors back.
    """
    values, kept = swap.tensors(), []
    streams = is_streamed(model)
    with model.weights.standing_in(values) if streams else nullcontext():
        try:
            for name in values:
                if streams and name in model.weights:  # it may not be in memory yet
                    continue
                path, _, own = name.rpartition(".")
                parameter = getattr(model.get_submodule(path), own)
                kept.append((parameter, parameter.data))
                parameter.data = values[name]
            yield
        finally:
            for parameter, data in kept:
                parameter.data = data


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient, so a backward pass goes through the activations alone."""
    kept = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, wanted in kept:
            parameter.requires_grad_(wanted)


def values(model: PreTrainedModel, batches: Sequence[Batch], metric: Metric) -> Floats:
    """The metric of every prompt, in the order of the batches; NaN where a prompt lacks what the metric needs."""
    with torch.inference_mode():
        return _joined(list(together(model)([partial(metric.of, model, batch) for batch in batches])))


@torch.inference_mode()
def values_under(
    model: PreTrainedModel,
    architecture: Architecture,
    swaps: Sequence[Swap],
    batch: Batch,
    metric: Metric,
    outputs: dict[int, Any] | None = None,
) -> Iterator[Floats]:
    """The metric of a batch's prompts under each swap, (prompts,), as it is computed.

    `outputs` are those of the model's blocks on this batch; they are put there where it is empty. Memory: these
    outputs, beside the model.
    """
    outputs = {} if outputs is None else outputs
    if not outputs:
        with recording(model, architecture, outputs):
            metric.of(model, batch)
    for swap in swaps:
        with swapped(model, swap), skipping(model, architecture, outputs, swap.first):
            values = metric.of(model, batch)
        yield values.double().cpu().numpy()


def _joined(parts: Sequence[Tensor]) -> Floats:
    return np.concatenate([part.double().cpu().numpy() for part in parts]) if parts else np.zeros(0)
