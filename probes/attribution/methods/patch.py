"""Activation patching between the two models: one component's output taken from the other.

Sufficiency: the base runs with the tuned model's output; necessity: the tuned model with the base's. It moves
the whole change of the output, the inherited part included, so it does not measure this component's own weights.
The method is that of Vig et al. 2020 (arXiv 2004.12265), here across checkpoints on one prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from probes.attribution.effects import BACKWARD, FORWARD, Effects
from probes.attribution.forwards import Floats
from probes.attribution.metric import Metric
from probes.attribution.units import Unit
from probes.attribution.work import Work
from probes.attribution.written import is_written
from probes.capture.editing import entering, leaving
from probes.capture.hooks.plan import Seen, plan
from probes.capture.hooks.torch_backend import capture
from probes.capture.skipping import recording, skipping
from tv.architecture.anatomy import Architecture
from tv.prompts.encoding import Batch

SITES = ("embed_out", "head_out", "attn_out", "mlp_out")


def patch(work: Work, units: Sequence[Unit]) -> Iterator[Effects]:
    """M(base with a_tuned) − M(base) and M(tuned) − M(tuned with a_base), for components and heads.

    Args:
        work: The pair, the prompts and the metric.
        units: Components or heads; the unembedding writes no residual stream and is left out.
    """
    patched = tuple(unit for unit in units if is_written(unit, work.pair.architecture))
    batches = [tuple(item.prompt.id for item in batch.encoded) for batch in work.small_batches]
    prompts = tuple(prompt for batch in batches for prompt in batch)
    for direction, model, source in ((FORWARD, "base", "tuned"), (BACKWARD, "tuned", "base")):
        parts = work.results([Patched(model, source, patched, batch) for batch in batches])
        start, values = (np.concatenate(each, -1) for each in zip(*parts, strict=True))
        effects = values - start if direction == FORWARD else start - values
        yield Effects("patch", direction, patched, prompts, effects)


@dataclass(frozen=True)
class Patched:
    """A task: one batch through a model as it is, and with each unit's output taken from the source."""

    model: str
    source: str
    units: tuple[Unit, ...]
    prompts: tuple[str, ...]

    def __call__(self, work: Work) -> tuple[Floats, Floats]:
        named = {"base": work.pair.base, "tuned": work.pair.tuned}
        architecture, batch = work.pair.architecture, work.batch(self.prompts)
        return _under(named[self.model], named[self.source], architecture, self.units, batch, work.metric)

    def __str__(self) -> str:
        return f"patch of {self.model} from prompt {self.prompts[0]!r} on"


def patched_with_itself(work: Work, unit: Unit) -> float:
    """The largest change when a component's output is replaced by itself: 0 if patching replaces the right output."""
    off = [0.0]
    for batch in work.batches:
        start, values = Patched("base", "base", (unit,), tuple(item.prompt.id for item in batch.encoded))(work)
        off.append(float(np.nanmax(np.abs(values - start), initial=0.0)))
    return max(off)


def _under(
    model: PreTrainedModel,
    source: PreTrainedModel,
    architecture: Architecture,
    units: Sequence[Unit],
    batch: Batch,
    metric: Metric,
) -> tuple[Floats, Floats]:
    """The metric of a batch's prompts, (prompts,), and with each unit patched, (units, prompts)."""
    layers = {unit.layer for unit in units}
    reads = [read for read in plan(architecture, SITES) if any(site.layer in layers for site in read.sites)]
    before = replace(architecture, blocks=tuple(block for block in architecture.blocks if block.layer < max(layers)))
    of = {(site.name, site.layer): read.path for read in reads for site in read.sites}
    seen, _ = capture(source, reads, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})
    outputs: dict[int, Any] = {}
    under: list[Tensor] = []
    with torch.inference_mode():
        with recording(model, before, outputs):
            start = metric.of(model, batch)
        for unit in units:
            with (
                _patched(model, architecture, unit, seen, of),
                skipping(model, architecture, outputs, unit.layer),
            ):
                under.append(metric.of(model, batch))
        return start.double().cpu().numpy(), torch.stack(under).double().cpu().numpy()


@contextmanager
def _patched(
    model: nn.Module, architecture: Architecture, unit: Unit, seen: dict[str, Seen], of: dict[tuple[str, int], str]
) -> Iterator[None]:
    """`model` with the output of one component, or of one head, taken from another model."""
    handle: RemovableHandle
    if unit.granularity == "head":
        writer = architecture.blocks[unit.layer].writer(unit.component)
        assert writer is not None and writer.head_module is not None
        path = writer.head_module.path
        z, width = seen[path].input, seen[path].input.shape[-1] // writer.head_module.n_heads
        columns = slice(unit.head * width, (unit.head + 1) * width)

        def edit(value: Tensor) -> Tensor:
            value = value.clone()
            value[..., columns] = z[..., columns].to(value).view_as(value[..., columns])
            return value

        handle = model.get_submodule(path).register_forward_pre_hook(entering(edit), with_kwargs=True)
    elif unit.component == "embed":
        path = of["embed_out", -1]
        handle = model.get_submodule(path).register_forward_pre_hook(
            entering(lambda value: seen[path].input.to(value, copy=True)), with_kwargs=True
        )
    else:
        path = of[f"{unit.component}_out", unit.layer]
        handle = model.get_submodule(path).register_forward_hook(
            # a copy: Falcon adds attention to what its MLP returns in place
            leaving(lambda value: seen[path].output.to(value, copy=True).view_as(value))
        )
    try:
        yield
    finally:
        handle.remove()
