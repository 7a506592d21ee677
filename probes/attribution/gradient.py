"""Attribution patching: the change of every activation times the metric's gradient there, at either end.

A first-order reading of `patch` for all components and heads at once: two forward passes and one backward. Source:
Nanda 2023, "Attribution Patching"; Syed, Rager & Conmy 2023 (arXiv 2310.10348).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.effects import BACKWARD, FORWARD, Effects
from probes.attribution.exact import prompts_of
from probes.attribution.forwards import Told, frozen
from probes.attribution.metric import Metric
from probes.attribution.patch import SITES
from probes.attribution.units import Unit
from probes.capture.hooks.plan import Read, Seen, plan
from probes.capture.hooks.torch_backend import capture, run_hooked
from probes.capture.pair import Pair
from probes.errors import RunError
from tv.architecture.anatomy import Architecture
from tv.prompts.encoding import Batch


def gradient(
    pair: Pair, units: Sequence[Unit], batches: Sequence[Batch], metric: Metric, told: Told | None = None
) -> list[Effects]:
    """Σ_tokens ∇_a M · (a_tuned − a_base) for components and heads, with the base's gradient and with the tuned one's.

    Raises RunError for a metric that has no gradient. Where a metric is flat at one end (kl at the tuned model) all
    effects there are 0.
    """
    if not metric.smooth:
        raise RunError(f"gradient: {metric.name} is a step function and has no gradient; use graft and revert")
    wanted = tuple(unit for unit in units if unit.granularity in ("component", "head") and unit.component != "unembed")
    found = []
    for direction, model, other, sign in ((FORWARD, pair.base, pair.tuned, 1), (BACKWARD, pair.tuned, pair.base, -1)):
        parts = []
        for b, batch in enumerate(batches):
            parts.append(sign * _batch(model, other, pair.architecture, wanted, batch, metric))
            if told:
                told(b + 1, len(batches))
        found.append(Effects("gradient", direction, wanted, prompts_of(batches), torch.cat(parts, 1).numpy()))
    return found


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
    handle = embed.register_forward_hook(lambda _module, _args, output: output.requires_grad_())
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
    site = "head_out" if unit.granularity == "head" else f"{unit.component}_out"
    found = products.get((site, unit.layer))
    if found is None:  # no gradient arrived
        return torch.zeros(n)
    if unit.granularity == "head":
        found = found.unflatten(-1, (architecture.n_heads, -1))[..., unit.head, :]
    return found.flatten(1).sum(1)
