"""The weights of live modules, also of those that are fused, stacked, offloaded or streamed."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from tv.architecture.anatomy import Module
from tv.checkpoints.streamed import in_memory


def matrix_of(module: Module, owner: nn.Module) -> Float[Tensor, "rows cols"]:
    """The live matrix of `module`, (out, in), a view of the weight of the Hugging Face module that owns it."""
    return module.matrix(parameter_of(owner, module.parameter.rpartition(".")[2] if module.expert >= 0 else "weight"))


def bias_of(module: Module, owner: nn.Module) -> Float[Tensor, " rows"] | None:
    """The live bias of `module`; None where it has none."""
    if getattr(owner, "bias", None) is None:
        return None
    return module.outputs(parameter_of(owner, "bias"), dim=0)


def parameter_of(owner: nn.Module, name: str) -> Tensor:
    """A parameter's values, also where they are read, or loaded by accelerate, for the module's forward alone."""
    parameter = in_memory(owner).get_parameter(name).detach()
    if parameter.is_meta:
        held: Tensor = owner._hf_hook.weights_map[name]  # type: ignore[union-attr, index]
        return held.detach()
    return parameter
