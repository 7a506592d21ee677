"""What a model holds that training can change: its parameters, and the buffers that its files keep beside them."""

from __future__ import annotations

from torch import Tensor, nn


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
