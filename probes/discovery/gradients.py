"""The gradient of a loss to every weight of a model, also of one that is in memory a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.forwards import frozen
from probes.attribution.parts import Parts
from probes.attribution.waiting import Waiting
from tv.architecture.anatomy import Architecture
from tv.architecture.values import values_of
from tv.checkpoints.streamed import is_streamed
from tv.prompts.encoding import Batch

Loss = Callable[[Batch, Float[Tensor, "batch pos vocab"]], Tensor]


def gradients(
    model: PreTrainedModel, architecture: Architecture, batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    """Of the sum over batches of a loss of the logits at every position, by parameter.

    Args:
        model: Its parameters may require no gradient.
        architecture: Its blocks; each of a streamed model passes on its output alone (`Architecture.chained`).
        batches: Each is one pass.
        loss: Of a batch and its logits.

    Returns:
        float32, of the parameters that the loss depends on. Those of a streamed model wait in files, beyond a bound.
    """
    if is_streamed(model):
        return _block_by_block(model, architecture, batches, loss)
    leaves = {name: value for name, value in values_of(model).items() if value.is_floating_point()}
    with frozen(model):
        try:
            for value in leaves.values():
                value.requires_grad_(True)
            for batch in batches:
                loss(batch, model(**_inputs(model, batch), use_cache=False).logits).backward()
            return {name: value.grad for name, value in leaves.items() if value.grad is not None}
        finally:
            for value in leaves.values():
                value.grad = None
                value.requires_grad_(False)


def _inputs(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.input_ids.to(model.device), "attention_mask": batch.attention_mask.to(model.device)}


def _block_by_block(
    model: PreTrainedModel, architecture: Architecture, batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    """There and back: what enters each block waits, and on the way back the block runs again from there."""
    found, waiting = dict[str, Tensor](), Waiting(model)

    def take(name: str, gradient: Tensor) -> None:
        if name in found:  # of another batch, or of a tied matrix
            found[name] += gradient
        else:
            found[name] = waiting.put(gradient.float())

    for batch in batches:
        with torch.no_grad():
            parts, entered = Parts(model, architecture, _inputs(model, batch), None), list[Tensor]()
            for layer in range(-1, architecture.n_layers):
                entering = parts.block(layer, entered[-1].clone()) if layer >= 0 else parts.entering()
                entered.append(waiting.put(entering))
        with torch.enable_grad(), model.weights.giving_gradients(take):
            states = entered.pop().detach().requires_grad_()
            loss(batch, parts.behind(states.clone(), parts.inputs)).backward()
            for layer in reversed(range(architecture.n_layers)):
                behind, states = states.grad, entered.pop().detach().requires_grad_()
                parts.block(layer, states.clone()).backward(behind)
            parts.entering().backward(states.grad)
    return found
