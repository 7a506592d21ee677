"""The experts of a mixture, one by one: what each computed for the places that chose it.

The module that holds them runs them all in one call, in whatever way is fastest; here each is computed again from the
call's input, choice and weights, which shows what one expert did however the module runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from probes.measures.live_weights import matrix_of
from tv.architecture.anatomy import Architecture, Module


@dataclass(frozen=True)
class Expert:
    """One expert at the n places that chose it."""

    x: Float[Tensor, "n d_model"]
    gate: Float[Tensor, "n d_expert"]
    up: Float[Tensor, "n d_expert"]
    hidden: Float[Tensor, "n d_expert"]
    down: Float[Tensor, "n d_model"]
    contribution: Float[Tensor, "n d_model"]  # `down` times the router's weight: what it adds to the residual stream


@dataclass(frozen=True)
class Matrices:
    """The three modules of one expert."""

    gate: Module
    up: Module
    down: Module


def experts_of(architecture: Architecture, layer: int) -> list[Matrices]:
    """Every expert of a layer, in order."""
    by_expert: dict[int, dict[str, Module]] = {}
    for module in architecture.modules:
        if module.layer == layer and module.expert >= 0:
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
    act: Callable[[Tensor], Tensor] = owner.act_fn  # type: ignore[assignment]
    gate, up, down = (matrix_of(module, owner) for module in (matrices.gate, matrices.up, matrices.down))
    opened, carried = linear(x, gate), linear(x, up)
    hidden = act(opened) * carried
    out = linear(hidden, down)
    share = (weights * (index == matrices.gate.expert)).sum(-1, keepdim=True)
    return Expert(x, opened, carried, hidden, out, out * share.to(out.dtype))


def total(owner: nn.Module, all_experts: list[Matrices], x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The sum of the experts' contributions at all n places: the module's output, if it works as assumed."""
    out = torch.zeros_like(x)
    for matrices in all_experts:
        chosen = chose(index, matrices.gate.expert)
        if bool(chosen.any()):
            out[chosen] += run_expert(owner, matrices, x[chosen], index[chosen], weights[chosen]).contribution
    return out
