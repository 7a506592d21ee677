"""Pairs of Llama models that compute one function, written differently: nothing may be claimed of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def neurons_permuted(model: PreTrainedModel) -> None:
    """The neurons of every MLP in another order."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.layers:
        mlp = layer.mlp
        order = torch.randperm(mlp.up_proj.out_features, generator=generator)
        for matrix in (mlp.gate_proj, mlp.up_proj):
            matrix.weight.copy_(matrix.weight[order].clone())
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order].clone())


def gains_moved(model: PreTrainedModel) -> None:
    """The gains of every block's norms doubled, and the matrices that read them halved."""
    for layer in model.model.layers:
        attn, mlp = layer.self_attn, layer.mlp
        readers = [
            (layer.input_layernorm, [attn.q_proj, attn.k_proj, attn.v_proj]),
            (layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]),
        ]
        for norm, matrices in readers:
            norm.weight.mul_(2)
            for matrix in matrices:
                matrix.weight.div_(2)


def writers_scaled(model: PreTrainedModel) -> None:
    """v and up doubled, o and down halved."""
    for layer in model.model.layers:
        for first, second in (
            (layer.self_attn.v_proj, layer.self_attn.o_proj),
            (layer.mlp.up_proj, layer.mlp.down_proj),
        ):
            first.weight.mul_(2)
            second.weight.div_(2)


def between_bfloat16(model: PreTrainedModel) -> None:
    """Weights that no bfloat16 holds, and that round to the ones there were: a base for all of these pairs."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.mul_(1 + (torch.rand(parameter.shape, generator=generator) - 0.5) * 0.98 / 2**8)


def nothing(model: PreTrainedModel) -> None:
    """The base itself."""


def rounded(model: PreTrainedModel) -> None:
    """Rounded to bfloat16."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(torch.bfloat16).to(parameter.dtype))


SAME: dict[str, Callable[[PreTrainedModel], None]] = {
    "neurons in another order": neurons_permuted,
    "norm gains ×2, readers ÷2": gains_moved,
    "v, up ×2, o, down ÷2": writers_scaled,
    "rounded to bfloat16": rounded,
    "the base itself": nothing,
}


def write(base: Path, change: Callable[[PreTrainedModel], None], to: Path) -> Path:
    """Save `base`, changed, with its tokenizer, and return where."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        change(model)
    model.save_pretrained(to)
    for file in base.glob("*"):
        if "tokenizer" in file.name or file.name in ("special_tokens_map.json", "chat_template.jinja"):
            shutil.copy(file, to)
    return to
