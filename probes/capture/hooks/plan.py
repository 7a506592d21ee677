"""What to read, as data: which module's input and output serve which sites, block by block."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tv.architecture.anatomy import Architecture, Module

#: Sites of the whole model and of each block; `embed_out` is what the first block reads.
SITES = (
    "embed_out",
    "resid_pre",
    "head_out",
    "attn_out",
    "resid_mid",
    "router",
    "gate",
    "gate_act",
    "up",
    "mlp_out",
    "resid_post",
    "resid_final",
    "logits",
)
#: The input and output of a matrix or a gain itself, a site a module: what the ledger reads.
MODULE = "module"
#: The experts of a mixture, all in one call: input and output, and in `rest` the chosen experts and their weights.
EXPERTS = "experts"

_WHOLE_MODEL = ("embed_out", "resid_final", "logits")
_BOTH = {"head_out", MODULE, EXPERTS}
_OUTPUTS = {"attn_out", "router", "gate_act", "up", "mlp_out", "resid_post", "logits", EXPERTS}


@dataclass(frozen=True)
class Site:
    """A place where a hook reads. `layer` is −1 for the embedding and `n_layers` after the last block."""

    name: str
    layer: int
    module: Module | None = None  # whose input and output it is, or whose slice of a fused output

    def __str__(self) -> str:
        if self.name in _WHOLE_MODEL:
            return self.name
        name = self.module.name if self.name == MODULE and self.module is not None else self.name
        return f"{name} of layer {self.layer}"


@dataclass(frozen=True)
class Read:
    """One hook: the module at `path` serves these sites. Its input and output are both handed over."""

    path: str
    sites: tuple[Site, ...]

    @property
    def ends(self) -> tuple[bool, bool]:
        """Whether its sites look at the input, and whether at the output."""
        names = {site.name for site in self.sites}
        both = bool(names & _BOTH)
        return both or bool(names - _OUTPUTS), both or bool(names & _OUTPUTS)


class Seen(NamedTuple):
    """What one hook saw in one model: (batch, pos, …) tensors, not copied."""

    input: Tensor
    output: Tensor
    rest: tuple[Tensor, ...] = ()  # further inputs: of experts, (batch, pos, top_k) indices and weights

    def at(self, site: Site) -> Tensor:
        """The tensor that `site` means: an input for some sites, an output for the others."""
        if site.name not in _OUTPUTS:
            return self.input
        return self.output if site.module is None else site.module.outputs(self.output)


def plan(architecture: Architecture, sites: Collection[str]) -> tuple[Read, ...]:
    """The reads that serve `sites` (names out of SITES; MODULE for every module's input and output; EXPERTS).

    Blocks come in order; inside one, hooks fire in the order in which the model calls its modules. A path is hooked
    once, whatever the number of sites it serves. Raises ValueError for an unknown site.
    """
    if unknown := set(sites) - {*SITES, MODULE, EXPERTS}:
        raise ValueError(f"unknown sites {sorted(unknown)}; there are {', '.join((*SITES, MODULE, EXPERTS))}")
    at: dict[str, list[Site]] = {}

    def add(path: str | None, name: str, layer: int, module: Module | None = None) -> None:
        if path is not None and name in sites:
            at.setdefault(path, []).append(Site(name, layer, module))

    def add_modules(layer: int) -> None:
        for module in architecture.modules:
            if module.layer == layer and module.expert < 0:
                add(module.path, MODULE, layer, module)

    add_modules(-1)
    for block in architecture.blocks:
        # A block's hook fires on return and reads the input too, so it comes last.
        layer = block.layer
        add(block.head_in, "head_out", layer)
        add_modules(layer)
        add(block.attn_out, "attn_out", layer)
        add(block.mid, "resid_mid", layer)
        add(block.router, "router", layer)
        add(block.experts, EXPERTS, layer)
        add(block.gate, "gate", layer)
        add(block.gate, "gate_act", layer)
        if block.gate is not None:
            up = architecture.module(layer, "up")
            add(up.path, "up", layer, up)
        add(block.mlp_out, "mlp_out", layer)
        add(block.path if layer == 0 else None, "embed_out", -1)
        add(block.path, "resid_pre", layer)
        add(block.path, "resid_post", layer)
    add(architecture.final_norm, "resid_final", architecture.n_layers)
    add_modules(architecture.n_layers)
    add(architecture.unembed, "logits", architecture.n_layers)
    return tuple(Read(path, tuple(served)) for path, served in at.items())
