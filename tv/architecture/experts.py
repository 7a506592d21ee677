"""The rules for a mixture of experts: a module per expert and matrix, the router, and an expert that all tokens share.

transformers keeps the experts of a layer in stacks, `gate_up_proj` (expert, gate and up rows, in) and `down_proj`
(expert, out, in), both transposed in some architectures; without gates it is `up_proj` and `down_proj`. Shapes tell
whether they are transposed. Which rows are the gate's is read off what the experts do with them. A stack of another
form is a matrix per expert under its own name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from tv.architecture.anatomy import Module

#: What the module that scores the experts is called.
ROUTER = ("gate", "router")
#: What holds all experts of a layer.
EXPERTS = ("experts",)
#: What holds router and experts of text, beside those of pictures.
OF_TEXT = ("text_moe",)
SHARED = ("shared_expert", "shared_experts", "shared_mlp")
_SHARED_MATRICES = {"gate": "shared_gate", "up": "shared_up", "down": "shared_down"}
_SHARED_ROUTER = "shared_expert_gate"


@dataclass(frozen=True)
class Layout:
    """How the experts of a layer are stacked."""

    count: int
    d_model: int
    d_expert: int
    transposed: bool  # stored (expert, in, out)
    gated: bool
    interleaved: bool = False  # gate and up rows alternate
    gate_first: bool = True
    passing: int = 0  # experts behind these that give what they read; the fused stack holds rows for them

    def rows(self, name: str) -> tuple[tuple[tuple[int, int], ...], int]:
        """The rows of `gate` or `up` among those of the fused stack, and their step."""
        if not self.gated:
            return (), 1
        second = (name == "gate") != self.gate_first
        if self.interleaved:
            return ((int(second), 2 * self.d_expert),), 2
        return ((self.d_expert * second, self.d_expert * (1 + second)),), 1


def is_mixture(mlp: nn.Module) -> bool:
    """Whether the MLP of a block is a mixture of experts."""
    names = [name for name, _ in mlp.named_modules()]
    return "router" in names or any("expert" in name for name in names)


def layout_of(experts: nn.Module) -> Layout | None:
    """How `experts` stacks its matrices; None where it has no stacks of a known form."""
    shapes = {name: tuple(value.shape) for name, value in experts.named_parameters(recurse=False)}
    gated = "gate_up_proj" in shapes
    into, down = shapes.get("gate_up_proj" if gated else "up_proj", ()), shapes.get("down_proj", ())
    if len(into) != 3 or len(down) != 3 or "gate_proj" in shapes:
        return None
    fold = 2 if gated else 1
    passing = into[0] - down[0] if gated and hasattr(experts, "identity_expert") else 0
    into = (into[0] - passing, *into[1:])
    if into == (down[0], fold * down[2], down[1]):
        plain = Layout(down[0], down[1], down[2], transposed=False, gated=gated)
    elif into == (down[0], down[2], fold * down[1]):
        plain = Layout(down[0], down[2], down[1], transposed=True, gated=gated)
    else:
        return None
    if not gated and getattr(experts, "is_transposed", False) and into[1] == into[2]:
        return None
    found = _probed(experts, plain) if gated and hasattr(experts, "_apply_gate") else plain
    return None if found is None else replace(found, passing=passing)


def _probed(experts: Any, plain: Layout) -> Layout | None:
    """The order of gate and up rows, from what moves what in the experts' own function of them.

    The output is linear in an entry of up, and not in one of gate.
    """
    d = plain.d_expert
    start = torch.linspace(0.3, 0.7, 2 * d, dtype=torch.float64)
    start[[0, 1, d]] = 0.1  # a step of 0.2 crosses 0, where a ReLU bends
    try:
        with torch.device("cpu"), torch.no_grad():

            def out(index: int, step: float) -> Tensor:
                moved = start.clone()
                moved[index] += step
                return experts._apply_gate(moved[None])[0]

            rest = out(0, 0.0)
            partner = 1 if bool((out(0, 0.2) != rest)[0]) and bool((out(1, 0.2) != rest)[0]) else d
            for index, other in ((0, partner), (2, 3) if partner == 1 and d > 1 else (d - 1, 2 * d - 1)):
                at = index // 2 if partner == 1 else index
                touched = [(out(i, 0.2) != rest).nonzero()[:, 0].tolist() for i in (index, other)]
                if touched != [[at], [at]]:
                    return None
            bend = [float((out(i, 0.2) - 2 * rest + out(i, -0.2))[0].abs()) for i in (0, partner)]
    except Exception:  # another architecture's function may expect anything
        return None
    if min(bend) > 1e-9 or max(bend) < 1e-9:
        return None
    return Layout(plain.count, plain.d_model, d, plain.transposed, True, partner == 1, bend[0] > bend[1])


def stacked_modules(layer: int, path: str, experts: nn.Module) -> Iterator[Module]:
    """The modules of all experts in `experts`, one expert after the other; nothing where there is no known stack."""
    layout = layout_of(experts)
    if layout is None:
        return
    d, d_expert = layout.d_model, layout.d_expert
    into = f"{path}.gate_up_proj" if layout.gated else f"{path}.up_proj"
    entering = [(name, *layout.rows(name)) for name in (("gate", "up") if layout.gated else ("up",))]
    for i in range(layout.count):
        for name, rows, step in entering:
            yield Module(
                *(layer, name, "linear", "mlp", path, into, (d_expert, d)),
                ranges=rows,
                step=step,
                transposed=layout.transposed,
                expert=i,
            )
        yield Module(
            *(layer, "down", "linear", "mlp", path, f"{path}.down_proj", (d, d_expert)),
            transposed=layout.transposed,
            expert=i,
        )
    for i in range(layout.count, layout.count + layout.passing):
        yield Module(
            *(layer, "gate_up_proj", "linear", "mlp", path, into, (2 * d_expert, d)),
            transposed=layout.transposed,
            expert=i,
        )


def own_stack(
    layer: int, names: Sequence[str], component: str, path: str, parameter: str, stack: Tensor, transposed: bool
) -> Iterator[Module]:
    """A stack of another form: of each expert a matrix, or as many as names, one after the other in its rows."""
    rows, cols = reversed(stack.shape[1:]) if transposed else stack.shape[1:]
    count = rows // len(names)
    for i, (k, name) in product(range(len(stack)), enumerate(names)):
        yield Module(
            *(layer, name, "linear", component, path, parameter, (count, cols)),
            ranges=((k * count, (k + 1) * count),) if len(names) > 1 else (),
            transposed=transposed,
            expert=i,
        )


def shared_name(role: str) -> str:
    """The name of a matrix of the expert that all tokens share, from its role in an MLP."""
    return _SHARED_MATRICES.get(role, f"shared_{role}")


def is_shared(segments: list[str]) -> bool:
    """Whether a path below the MLP leads into an expert that all tokens share."""
    return any(segment in SHARED for segment in segments)


def own_role(segments: list[str]) -> str | None:
    """The role of a matrix of the mixture itself: its router, or the one of the shared expert."""
    segments = segments[1:] if segments[0] in OF_TEXT else segments
    if segments[0] in ROUTER or segments[-2:-1] == ["router"]:
        return "router"
    return "shared_router" if segments[0] == _SHARED_ROUTER else None
