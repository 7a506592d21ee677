"""Attribution patching: the change of every activation times the metric's gradient there, at either end.

A first-order approximation of `patch` for all components and heads at once: two forward passes and one backward.
Source: Nanda 2023, "Attribution Patching"; Syed, Rager & Conmy 2023 (arXiv 2310.10348).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.effects import BACKWARD, FORWARD, Effects
from probes.attribution.forwards import Floats, frozen
from probes.attribution.methods.patch import SITES
from probes.attribution.metric import Metric
from probes.attribution.units import Unit
from probes.attribution.work import Work
from probes.attribution.written import is_written
from probes.capture.hooks.plan import Read, Seen, head_site, plan
from probes.capture.hooks.torch_backend import capture, run_hooked
from probes.errors import RunError
from tv.architecture.anatomy import Architecture
from tv.prompts.encoding import Batch


def gradient(work: Work, units: Sequence[Unit]) -> Iterator[Effects]:
    """Σ_tokens ∇_a M · (a_tuned − a_base) for components and heads, with the base's gradient and with the tuned one's.

    Where a metric is flat at one end (kl at the tuned model) all effects there are 0.

    Args:
        work: The pair, the prompts and the metric.
        units: Components or heads; the unembedding writes no residual stream and is left out.

    Raises:
        RunError: The metric has no gradient.
    """
    if not work.metric.smooth:
        raise RunError(f"gradient: {work.metric.name} is a step function and has no gradient; use graft and revert")
    patched = tuple(unit for unit in units if is_written(unit, work.pair.architecture))
    batches = [tuple(item.prompt.id for item in batch.encoded) for batch in work.small_batches]
    prompts = tuple(prompt for batch in batches for prompt in batch)
    for direction, name, sign in ((FORWARD, "base", 1), (BACKWARD, "tuned", -1)):
        parts = work.results([Gradient(name, patched, batch) for batch in batches])
        yield Effects("gradient", direction, patched, prompts, sign * np.concatenate(parts, 1))


@dataclass(frozen=True)
class Gradient:
    """A task: one batch, with the gradient of one model."""

    model: str
    units: tuple[Unit, ...]
    prompts: tuple[str, ...]

    def __call__(self, work: Work) -> Floats:
        pair, batch = work.pair, work.batch(self.prompts)
        model, other = (pair.base, pair.tuned) if self.model == "base" else (pair.tuned, pair.base)
        return _batch(model, other, pair.architecture, self.units, batch, work.metric).numpy()

    def __str__(self) -> str:
        return f"gradient of {self.model} from prompt {self.prompts[0]!r} on"


def _batch(
    model: PreTrainedModel,
    other: PreTrainedModel,
    architecture: Architecture,
    units: Sequence[Unit],
    batch: Batch,
    metric: Metric,
) -> Float[Tensor, "units batch"]:
    """Σ_tokens ∇_a M(model) · (a_other − a_model)."""
    reads = plan(architecture, SITES)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    there, _ = capture(other, reads, inputs)
    products: dict[tuple[str, int], Tensor] = {}  # (batch, pos, width)

    def receive(read: Read, seen: Seen) -> None:
        for site in read.sites:
            change = there[read.path].at(site).to(seen.at(site)) - seen.at(site).detach()

            def keep(
                gradient: Tensor, change: Tensor = change, place: tuple[str, int] = (site.name, site.layer)
            ) -> None:
                products[place] = (gradient * change).float()

            seen.at(site).register_hook(keep)

    embed = model.get_submodule(architecture.embed)
    handle = embed.register_forward_hook(lambda _module, _args, output: output.requires_grad_().clone())
    try:
        with frozen(model), torch.enable_grad():
            value = metric.values(run_hooked(model, reads, inputs, receive), batch)
            known = ~value.isnan()
            if bool(known.any()):
                value[known].sum().backward()
    finally:
        handle.remove()
    rows = [_of(unit, products, architecture, len(batch.encoded)) for unit in units]
    nan = torch.where(value.isnan(), torch.nan, 0.0).double().cpu()
    return torch.stack(rows).double().cpu() + nan.detach()


def _of(unit: Unit, products: dict[tuple[str, int], Tensor], architecture: Architecture, n: int) -> Tensor:
    writer = architecture.blocks[unit.layer].writer(unit.component) if unit.layer >= 0 else None
    site = f"{unit.component}_out" if writer is None or unit.granularity != "head" else head_site(writer)
    product = products.get((site, unit.layer))
    if product is None:  # no gradient arrived
        return torch.zeros(n)
    if unit.granularity == "head":
        assert writer is not None and writer.head_module is not None
        product = product.unflatten(-1, (writer.head_module.n_heads, -1))[..., unit.head, :]
    return product.flatten(1).sum(1)
