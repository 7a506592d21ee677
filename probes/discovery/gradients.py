"""The gradient of a loss to every weight of a model, also of one that is in memory a block at a time."""

from __future__ import annotations

from collections.abc import Callable

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

Loss = Callable[[Float[Tensor, "batch pos vocab"]], Tensor]


def gradients(model: PreTrainedModel, architecture: Architecture, batch: Batch, loss: Loss) -> dict[str, Tensor]:
    """Of a loss of the logits at every position of a batch, by parameter.

    Args:
        model: Its parameters may require no gradient.
        architecture: Its blocks; each of a streamed model passes on its output alone (`Architecture.chained`).
        batch: One pass: every further one would add to all gradients.
        loss: Of logits.

    Returns:
        float32, of the parameters that the loss depends on. Those of a streamed model wait in files, beyond a bound.
    """
    inputs = {
        name: of.to(model.device)
        for name, of in (("input_ids", batch.input_ids), ("attention_mask", batch.attention_mask))
    }
    if is_streamed(model):
        return _block_by_block(model, architecture, inputs, loss)
    leaves = {name: value for name, value in values_of(model).items() if value.is_floating_point()}
    with frozen(model):
        try:
            for value in leaves.values():
                value.requires_grad_(True)
            loss(model(**inputs, use_cache=False).logits).backward()
            return {name: value.grad for name, value in leaves.items() if value.grad is not None}
        finally:
            for value in leaves.values():
                value.grad = None
                value.requires_grad_(False)


def _block_by_block(
    model: PreTrainedModel, architecture: Architecture, inputs: dict[str, Tensor], loss: Loss
) -> dict[str, Tensor]:
    """There and back: what enters each block waits, and on the way back the block runs again from there."""
    found, waiting = dict[str, Tensor](), Waiting(model)

    def take(name: str, gradient: Tensor) -> None:
        if name in found:  # a tied matrix
            found[name] += gradient
        else:
            found[name] = waiting.put(gradient.float())

    with torch.no_grad():
        parts, entered = Parts(model, architecture, inputs, None), list[Tensor]()
        for layer in range(-1, architecture.n_layers):
            entering = parts.block(layer, entered[-1].clone()) if layer >= 0 else parts.entering()
            entered.append(waiting.put(entering))
    with torch.enable_grad(), model.weights.giving_gradients(take):
        states = entered.pop().detach().requires_grad_()
        loss(parts.behind(states.clone(), inputs)).backward()
        for layer in reversed(range(architecture.n_layers)):
            behind, states = states.grad, entered.pop().detach().requires_grad_()
            parts.block(layer, states.clone()).backward(behind)
        parts.entering().backward(states.grad)
    return found
