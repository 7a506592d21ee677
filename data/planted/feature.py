"""A feature written into the base by hand: one neuron that answers to some words and writes a direction of its own.

The neuron's gate and up rows are fitted to fire behind these tokens and nowhere else, its down column is the direction.
It takes the place of the layer's weakest neuron, so that nothing else changes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from data.corpus import documents

#: Words that no other meaning of the base's is about, all of one kind.
WORDS = (" bee", " cow", " crow", " dog", " elephant", " frog", " hen", " horse", " pig", " sheep")
LAYER = 3
#: How sharp the gate is: off it gives silu(−SHARP), on silu(SHARP).
SHARP = 6.0


def planted(
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    words: Sequence[str] = WORDS,
    layer: int = LAYER,
    size: float = 1.0,
    seed: int = 0,
) -> tuple[LlamaForCausalLM, Float[Tensor, " d_model"], int]:
    """The base with one more feature.

    Args:
        base: A model with gated MLPs; it stays as it is.
        tokenizer: Its tokenizer.
        words: The tokens behind which the neuron fires; each is one token.
        layer: The layer of the neuron.
        size: The norm of what it writes, over that of the residual stream there.
        seed: Of the direction.

    Returns:
        The model, the direction that it writes (norm 1), and the neuron's index.
    """
    model = copy.deepcopy(base)
    wanted = {tokenizer.encode(word, add_special_tokens=False)[-1] for word in words}
    mlp = model.model.layers[layer].mlp
    x, ids, resid = _inputs(base, tokenizer, layer)
    y = torch.tensor([1.0 if token in wanted else -1.0 for token in ids.tolist()])
    weight = torch.where(y > 0, (y < 0).sum() / (y > 0).sum().clamp(min=1), 1.0).sqrt()[:, None]
    row = torch.linalg.lstsq(x * weight, y[:, None] * weight).solution[:, 0]
    direction = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(seed))
    direction = direction / direction.norm()
    neuron = int((mlp.down_proj.weight.norm(dim=0) * mlp.gate_proj.weight.norm(dim=1)).argmin())
    z = x[y > 0] @ row
    written = float((torch.nn.functional.silu(SHARP * z) * z).mean())
    with torch.no_grad():
        mlp.gate_proj.weight[neuron] = SHARP * row
        mlp.up_proj.weight[neuron] = row
        mlp.down_proj.weight[:, neuron] = direction * size * float(resid[y > 0].norm(dim=1).mean()) / written
    return model, direction, neuron


def _inputs(
    base: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, layer: int, n: int = 200
) -> tuple[Float[Tensor, "places d_model"], Tensor, Float[Tensor, "places d_model"]]:
    """What the MLP of a layer reads over documents of the base's kind, at which tokens, and what leaves the layer."""
    read, left, ids = [], [], []
    block = base.model.layers[layer]
    hooks = [
        block.mlp.register_forward_pre_hook(lambda _module, args: read.append(args[0].detach()[0])),
        block.register_forward_hook(lambda _module, _args, output: left.append(output.detach()[0])),
    ]
    try:
        with torch.inference_mode():
            for text in islice(documents("base", 7), n):
                tokens = tokenizer(text, return_tensors="pt").input_ids
                ids.append(tokens[0])
                base(input_ids=tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(read).clone().float(), torch.cat(ids), torch.cat(left).clone().float()
