"""What a model holds that training can change: its parameters, and the buffers that its files keep beside them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter, and every floating-point buffer that is saved (a layer's scale, a router's correction), by name.

    Args:
        model: Live, or a skeleton.

    Returns:
        The tensors themselves; a tied one once.

    Examples:
        >>> from tv.checkpoints.live import load_model
        >>> len(values_of(load_model("data/models/base"))) > 0
        True
    """
    values: dict[str, Tensor] = dict(model.named_parameters())
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            saved = buffer is not None and name not in module._non_persistent_buffers_set
            if saved and buffer.is_floating_point():
                values[f"{path}.{name}".lstrip(".")] = buffer
    return values


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model itself with its weights in another dtype, as if it had been loaded in it.

    What a model computes from its settings and stores in no file has the dtype that its class gives it. `model.to`
    rounds that too: with the frequencies of rotary embeddings in bfloat16, late positions are turned by other angles.
    """
    with torch.device("meta"):
        loaded = dict(type(model)._from_config(copy.deepcopy(model.config), dtype=dtype).named_buffers())
    computed = [
        (module, name, module._buffers[name])
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
        if (like := loaded.get(f"{path}.{name}".lstrip("."))) is not None and like.dtype == module._buffers[name].dtype
    ]
    model.to(dtype)
    for module, name, buffer in computed:
        module._buffers[name] = buffer
    return model
