"""The rules for a mixture of experts: a module per expert and matrix, the router, and an expert that all tokens share.

transformers keeps the experts of a layer in two parameters, `gate_up_proj` (expert, gate rows above up rows, in) and
`down_proj` (expert, out, in), and declares where an architecture uses another layout. Such a layout is refused here:
shapes do not tell interleaved rows from halves.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from tv.architecture.anatomy import Module
from tv.errors import ArchitectureError
from tv.runtime.transformers_private import USUAL_GATE

#: What the module that scores the experts is called.
ROUTER = ("gate", "router")
_SHARED = ("shared_expert", "shared_experts")
_SHARED_ROUTER = "shared_expert_gate"
_SHARED_MATRICES = {"gate_proj": "shared_gate", "up_proj": "shared_up", "down_proj": "shared_down"}
#: Execution order inside the block, before the experts' gate, up and down.
EXPERT_ORDER = ("router", *_SHARED_MATRICES.values(), "shared_router")


def is_mixture(mlp: nn.Module) -> bool:
    """Whether the MLP of a block is a mixture of experts."""
    return any("expert" in name for name, _ in mlp.named_children())


def expert_modules(kind: str, layer: int, path: str, mixture: nn.Module) -> Iterator[Module]:
    """The modules of the mixture at `path`. Raises ArchitectureError where its experts lie in an unknown layout."""
    children = dict(mixture.named_children())
    for name in ROUTER:
        if name in children:
            yield from _matrix(layer, "router", f"{path}.{name}", children[name])
    for name in _SHARED:
        for leaf, child in children[name].named_children() if name in children else ():
            if leaf in _SHARED_MATRICES:
                yield from _matrix(layer, _SHARED_MATRICES[leaf], f"{path}.{name}.{leaf}", child)
    if _SHARED_ROUTER in children:
        yield from _matrix(layer, "shared_router", f"{path}.{_SHARED_ROUTER}", children[_SHARED_ROUTER])
    if "experts" not in children or not has_known_layout(children["experts"]):
        raise ArchitectureError(f"{kind}: experts in a layout that no rule knows in {path}")
    yield from _fused(layer, f"{path}.experts", children["experts"])


def _matrix(layer: int, name: str, path: str, owner: nn.Module) -> Iterator[Module]:
    weight = getattr(owner, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        yield Module(layer, name, "linear", "mlp", path, f"{path}.weight", tuple(weight.shape))


def _fused(layer: int, path: str, experts: nn.Module) -> Iterator[Module]:
    count, d_model, d_ff = experts.get_parameter("down_proj").shape
    gate_up, down = f"{path}.gate_up_proj", f"{path}.down_proj"
    for i in range(count):
        for name, start in (("gate", 0), ("up", d_ff)):
            rows = ((start, start + d_ff),)
            yield Module(layer, name, "linear", "mlp", path, gate_up, (d_ff, d_model), ranges=rows, expert=i)
        yield Module(layer, "down", "linear", "mlp", path, down, (d_model, d_ff), expert=i)


def has_known_layout(experts: nn.Module) -> bool:
    """Whether transformers says, and the shapes agree, that gate rows stand above up rows and nothing is transposed.

    An architecture that overrides `_apply_gate` may take the halves in another order.
    """
    parameters = {name: tuple(value.shape) for name, value in experts.named_parameters()}
    gate_up, down = parameters.get("gate_up_proj", ()), parameters.get("down_proj", ())
    if len(gate_up) != 3 or len(down) != 3 or gate_up != (down[0], 2 * down[2], down[1]):
        return False
    apply_gate = getattr(type(experts), "_apply_gate", None)
    return (
        getattr(experts, "is_concatenated", True)
        and getattr(experts, "has_gate", True)
        and not getattr(experts, "is_transposed", False)
        and (apply_gate is None or apply_gate.__module__ == USUAL_GATE)
    )
