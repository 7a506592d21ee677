"""The experts of a mixture, one by one: what each computed for the places that chose it.

The module that holds them runs them all in one call, in whatever way is fastest; here each is computed again from the
call's input, choice and weights, which shows what one expert did however the module runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from probes.measures.live_weights import matrix_of, parameter_of
from tv.architecture.anatomy import Architecture, Module


@dataclass(frozen=True)
class Expert:
    """One expert at the n places that chose it."""

    x: Float[Tensor, "n d_model"]
    entered: Float[Tensor, "n rows"]  # what its gate and up matrices make of x, as they are stacked
    hidden: Float[Tensor, "n d_expert"]
    out: Float[Tensor, "n d_model"]
    contribution: Float[Tensor, "n d_model"]  # `out` times the router's weight: what it adds to the experts' sum


@dataclass(frozen=True)
class Matrices:
    """The modules of one expert; without a GLU there is no gate."""

    up: Module
    down: Module
    gate: Module | None = None

    @property
    def expert(self) -> int:
        """Its index."""
        return self.down.expert

    @property
    def pattern(self) -> Module:
        """The module whose output's sign is the gate pattern."""
        return self.up if self.gate is None else self.gate

    @property
    def entering(self) -> tuple[Module, ...]:
        """The modules that read x."""
        return (self.up,) if self.gate is None else (self.gate, self.up)


def experts_of(architecture: Architecture, layer: int) -> list[Matrices]:
    """Every expert of a layer, in order."""
    by_expert: dict[int, dict[str, Module]] = {}
    for module in architecture.modules:
        if module.layer == layer and module.expert >= 0 and module.name in ("gate", "up", "down"):
            by_expert.setdefault(module.expert, {})[module.name] = module
    return [Matrices(**by_expert[expert]) for expert in sorted(by_expert)]


def chose(index: Int[Tensor, "n top_k"], expert: int) -> Bool[Tensor, " n"]:
    """Which places chose `expert`."""
    return (index == expert).any(-1)


def overlap(base: Int[Tensor, "n top_k"], tuned: Int[Tensor, "n top_k"]) -> Float[Tensor, " n"]:
    """The share of chosen experts that the two models have in common, |A ∩ B| / |A ∪ B|."""
    both = (base[:, :, None] == tuned[:, None, :]).any(-1).sum(-1).float()
    return both / (base.shape[1] + tuned.shape[1] - both)


def run_expert(
    owner: nn.Module,
    matrices: Matrices,
    x: Float[Tensor, "n d_model"],
    index: Int[Tensor, "n top_k"],
    weights: Float[Tensor, "n top_k"],
) -> Expert:
    """One expert on `x`, whose places must all have chosen it."""
    whole = replace(matrices.up, ranges=())
    entered = linear(x, matrix_of(whole, owner), expert_bias(whole, owner))
    hidden = _hidden(owner, matrices, entered)
    out = linear(hidden, matrix_of(matrices.down, owner), expert_bias(matrices.down, owner))
    share = (weights * (index == matrices.expert)).sum(-1, keepdim=True)
    return Expert(x, entered, hidden, out, out * share.to(out.dtype))


def expert_bias(module: Module, owner: nn.Module) -> Float[Tensor, " rows"] | None:
    """The bias of one expert's matrix; None where the experts have none."""
    stack = getattr(owner, f"{module.parameter.rpartition('.')[2]}_bias", None)
    if stack is None:
        return None
    return module.outputs(parameter_of(owner, f"{module.parameter.rpartition('.')[2]}_bias")[module.expert])


def _hidden(owner: nn.Module, matrices: Matrices, entered: Tensor) -> Tensor:
    act: Callable[[Tensor], Tensor] = getattr(owner, "act_fn", None)  # type: ignore[assignment]
    if matrices.gate is None:
        return act(entered)
    if hasattr(owner, "_apply_gate"):
        hidden: Tensor = owner._apply_gate(entered)  # type: ignore[operator]
        return hidden
    return act(matrices.gate.outputs(entered)) * matrices.up.outputs(entered)


def total(owner: nn.Module, all_experts: list[Matrices], x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The sum of the experts' contributions at all n places: the module's output, if it works as assumed."""
    out = torch.zeros_like(x)
    for matrices in all_experts:
        chosen = chose(index, matrices.expert)
        if bool(chosen.any()):
            out[chosen] += run_expert(owner, matrices, x[chosen], index[chosen], weights[chosen]).contribution
    return out
