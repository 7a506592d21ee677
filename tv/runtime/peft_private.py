"""What this project uses of peft beyond its documented interface, all in one place.

Where a name has moved, look for its new home in the release notes of peft, change its line here, and run
tests/tv/checkpoints.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

#: The version whose private names these are.
KNOWN = "0.21"


def parameter_of(layer: Any) -> str | None:
    """The one parameter that a layer stands on (`target_parameters`); None where it stands on a module."""
    return getattr(layer, "parameter_name", None)


def expert_factors(layer: Any) -> tuple[Tensor, Tensor, float] | None:
    """(left, right, scaling) of a LoRA on a parameter that holds experts: T = scaling · left @ right, expert by expert.

    None for any other layer, and where several adapters are active or peft has no such factors.
    """
    stacked = parameter_of(layer) is not None and getattr(layer, "num_experts", 1) > 1
    if not stacked or len(layer.active_adapters) != 1 or not hasattr(layer, "get_delta_factors"):
        return None
    left, right, scaling = layer.get_delta_factors(layer.active_adapters[0])
    return left, right, scaling


def settings_of(layer: Any) -> dict[str, Any]:
    """What a layer was made with. It can refer to tensors of other layers."""
    return getattr(layer, "kwargs", {})
