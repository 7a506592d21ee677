"""The experts of a mixture, one by one: what each computed for the places that chose it.

The module that holds them runs them all in one call, in whatever way is fastest; here each is computed again from the
call's input, choice and weights, which shows what one expert did however the module runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probes.measures.live_weights import matrix_of, parameter_of
from tv.architecture.anatomy import Architecture, Module
from tv.runtime.products import linear


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


@dataclass(frozen=True)
class Routed:
    """What goes into the experts of a layer at n places, and to which of them.

    Most architectures give every place its chosen experts with weights. Llama 4 runs all experts on all places, each
    on inputs that the router has scaled: to 0 where it is not chosen.
    """

    x: Float[Tensor, "n d_model"] | Float[Tensor, "experts n d_model"]
    index: Int[Tensor, "n top_k"] | None = None
    weights: Float[Tensor, "n top_k"] | None = None

    @classmethod
    def of(
        cls, entering: Tensor, rest: Sequence[Tensor], shape: tuple[int, int], take: Callable[[Tensor], Tensor]
    ) -> Routed:
        """The routing in a call of the experts on a batch of this shape, at the places that `take` takes.

        Raises ValueError where the call has another form.
        """
        if len(rest) > 1 and entering.ndim == 3 and not rest[0].is_floating_point():
            return cls(take(entering), *(take(value) for value in rest[:2]))
        if rest or entering.ndim != 2 or len(entering) % (shape[0] * shape[1]):
            raise ValueError("the experts are called in another form")
        return cls(torch.stack([take(x) for x in entering.unflatten(0, (-1, *shape))]))

    def to(self, device: torch.device) -> Routed:
        """The same on a device."""
        moved = (None if value is None else value.to(device) for value in (self.index, self.weights))
        return Routed(self.x.to(device), *moved)

    def chosen(self, expert: int) -> Bool[Tensor, " n"]:
        """Which places chose `expert`."""
        if self.index is None:
            return self.x[expert].ne(0).any(-1)
        return (self.index == expert).any(-1)

    def into(self, expert: int, rows: Int[Tensor, " m"]) -> Float[Tensor, "m d_model"]:
        """What enters `expert` at some of the places."""
        return (self.x[expert] if self.index is None else self.x)[rows]

    def share(self, expert: int, rows: Int[Tensor, " m"]) -> Float[Tensor, "m 1"]:
        """The weight of `expert` at some of the places."""
        if self.index is None or self.weights is None:
            return self.x.new_ones(len(rows), 1)
        return (self.weights[rows] * (self.index[rows] == expert)).sum(-1, keepdim=True)


def passing(architecture: Architecture, layer: int) -> list[int]:
    """The experts of a layer that give what they read: they have no down projection."""
    held = {module.expert for module in architecture.modules if module.layer == layer and module.expert >= 0}
    computing = {matrices.expert for matrices in experts_of(architecture, layer)}
    return sorted(held - computing) if computing else []


def passed_on(routed: Routed, expert: int, rows: Int[Tensor, " m"]) -> Float[Tensor, "m d_model"]:
    """What an expert that gives what it reads adds to the experts' sum, at some of the places."""
    into = routed.into(expert, rows)
    return into * routed.share(expert, rows).to(into.dtype)


def overlap(base: Routed, tuned: Routed, experts: Sequence[int]) -> Float[Tensor, " n"]:
    """The share of chosen experts that the two models have in common, |A ∩ B| / |A ∪ B|."""
    masks = [torch.stack([routed.chosen(expert) for expert in experts]) for routed in (base, tuned)]
    return (masks[0] & masks[1]).sum(0).float() / (masks[0] | masks[1]).sum(0).float()


def run_expert(
    owner: nn.Module,
    matrices: Matrices,
    x: Float[Tensor, "n d_model"],
    share: Float[Tensor, "n 1"],
) -> Expert:
    """One expert on `x`; `share` is its weight at each place."""
    whole = replace(matrices.up, ranges=())
    entered = linear(x, matrix_of(whole, owner), expert_bias(whole, owner))
    hidden = _hidden(owner, matrices, entered)
    out = linear(hidden, matrix_of(matrices.down, owner), expert_bias(matrices.down, owner))
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


def total(owner: nn.Module, all_experts: list[Matrices], routed: Routed, others: Sequence[int] = ()) -> Tensor:
    """What the experts give at all n places, each computed by itself: their sum, or of all of them one by one.

    `others` are the experts that give what they read.
    """
    d_model = routed.x.shape[-1]
    parts = [routed.x.new_zeros(routed.x.shape[-2], d_model) for _ in all_experts]
    for part, matrices in zip(parts, all_experts, strict=True):
        rows = routed.chosen(matrices.expert).nonzero()[:, 0]
        if len(rows):
            into, share = routed.into(matrices.expert, rows), routed.share(matrices.expert, rows)
            part[rows] += run_expert(owner, matrices, into, share).contribution
    parts += [passed_on(routed, expert, torch.arange(len(routed.x), device=routed.x.device)) for expert in others]
    return torch.cat(parts) if routed.index is None else torch.stack(parts).sum(0)
