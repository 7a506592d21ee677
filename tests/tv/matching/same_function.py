"""Models that compute the same function as a given one, written differently, by plain arithmetic on their parameters.

Each function changes a live model in place. None of them uses the code that undoes them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def permute_neurons(model: PreTrainedModel) -> None:
    """The neurons of every GLU in another order."""
    for mlp in _all(model, "mlp"):
        order = torch.randperm(mlp.up_proj.out_features)
        mlp.gate_proj.weight.data = mlp.gate_proj.weight.data[order]
        mlp.up_proj.weight.data = mlp.up_proj.weight.data[order]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]


def move_gains(model: PreTrainedModel, factor: Tensor | float) -> None:
    """The gains of both norms of every block times `factor`, by channel; their readers' columns divided by it."""
    for block in _blocks(model):
        _gain(block.input_layernorm, factor)
        _gain(block.post_attention_layernorm, factor)
        attention, mlp = block.self_attn, block.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            reader.weight.data /= factor


def trade_sizes(model: PreTrainedModel, factor: float) -> None:
    """v and up times `factor`, o and down divided by it."""
    for block in _blocks(model):
        for writer, reader in (
            (block.self_attn.v_proj, block.self_attn.o_proj),
            (block.mlp.up_proj, block.mlp.down_proj),
        ):
            writer.weight.data *= factor
            if writer.bias is not None:
                writer.bias.data *= factor
            reader.weight.data /= factor


def change_value_bases(model: PreTrainedModel) -> None:
    """Every key-value group's values in a random basis, and its heads' output columns in the inverse one."""
    for attention in _all(model, "self_attn"):
        d, share = attention.head_dim, attention.num_key_value_groups
        values, output = attention.v_proj, attention.o_proj
        bases = torch.eye(d).double() + 0.2 * torch.randn(values.out_features // d, d, d).double()
        for rows in (values.weight, values.bias):
            if rows is not None:
                rows.data = (bases @ rows.data.double().reshape(len(bases), d, -1)).reshape(rows.shape).float()
        columns = output.weight.data.double().unflatten(1, (-1, d)).transpose(0, 1)
        columns = columns @ bases.inverse().repeat_interleave(share, 0)
        output.weight.data = columns.transpose(0, 1).flatten(1).float()


def turn_keys(model: PreTrainedModel) -> None:
    """Every pair of rotated dimensions (i, i + d/2) of keys turned and scaled, and of their queries the other way."""
    for attention in _all(model, "self_attn"):
        d, share = attention.head_dim, attention.num_key_value_groups
        groups = attention.k_proj.out_features // d
        factor = torch.polar(torch.exp(0.3 * torch.randn(groups, d // 2)), 6 * torch.rand(groups, d // 2))
        _turn(attention.k_proj, factor)
        _turn(attention.q_proj, (1 / factor.conj()).repeat_interleave(share, 0))


def _turn(projection: nn.Linear, factor: Tensor) -> None:
    half = factor.shape[1]
    for rows in (projection.weight, projection.bias):
        if rows is not None:
            first, second = rows.data.reshape(len(factor), 2, half, -1).unbind(1)
            turned = torch.complex(first, second) * factor[..., None]
            rows.data = torch.stack([turned.real, turned.imag], 1).reshape(rows.shape).contiguous()


def _gain(norm: nn.Module, factor: Tensor | float) -> None:
    offset = 1.0 if "Gemma" in type(norm).__name__ else 0.0
    norm.weight.data = (norm.weight.data + offset) * factor - offset


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    blocks = model.model.layers
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def _all(model: PreTrainedModel, name: str) -> list[nn.Module]:
    return [block.get_submodule(name) for block in _blocks(model)]
