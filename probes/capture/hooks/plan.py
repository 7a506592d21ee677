"""What to read, as data: which module's input and output serve which sites, block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tv.architecture.anatomy import COMPONENTS, Architecture, Block, Component, Module, Writer

#: Sites of the whole model and of each block; `embed_out` is what the first block reads. `attn_out` asks for what
#: every mixer adds: that of a state space is called `ssm_out`.
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
_INPUTS = {"embed_out", "resid_pre", "head_out", "resid_mid"}


@dataclass(frozen=True)
class Site:
    """A place where a hook reads. `layer` is −1 for the embedding and `n_layers` after the last block."""

    name: str
    layer: int
    module: Module | None = None  # whose input and output it is, or whose slice of a fused output
    component: Component = ""  # that writes what is read here

    def __str__(self) -> str:
        if self.name in _WHOLE_MODEL:
            return self.name
        name = self.module.name if self.name == MODULE and self.module is not None else self.name
        return f"{name} of layer {self.layer}"

    @property
    def kind(self) -> str:
        """The name in SITES that a suite asks for it by."""
        if self.component in ("", "embed"):
            return self.name
        return "head_out" if self.name.endswith("head_out") else _site_of(self.component)


@dataclass(frozen=True)
class Read:
    """One hook: the module at `path` serves these sites. Its input and output are both handed over."""

    path: str
    sites: tuple[Site, ...]

    @property
    def ends(self) -> tuple[bool, bool]:
        """Whether its sites look at the input, and whether at the output."""
        names = {site.kind for site in self.sites}
        both = bool(names & _BOTH)
        return both or bool(names & _INPUTS), both or bool(names - _INPUTS)


class Seen(NamedTuple):
    """What one hook saw in one model: (batch, pos, …) tensors, not copied."""

    input: Tensor
    output: Tensor
    rest: tuple[Tensor, ...] = ()  # further inputs: of experts, (batch, pos, top_k) indices and weights

    def at(self, site: Site) -> Tensor:
        """The tensor that `site` means: an input for some sites, an output for the others."""
        if site.kind in _INPUTS or site.kind == MODULE:
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

    def add(path: str | None, site: Site) -> None:
        if path is not None and site.kind in sites:
            at.setdefault(path, []).append(site)

    by_layer: dict[int, list[Module]] = {}
    for module in architecture.modules:
        if module.expert < 0 and module not in architecture.unread:
            by_layer.setdefault(module.layer, []).append(module)

    def add_modules(layer: int) -> None:
        for module in by_layer.get(layer, ()):
            add(module.path, Site(MODULE, layer, module))

    add_modules(-1)
    for block in architecture.blocks:
        # A block's hook fires on return and reads the input too, so it comes last.
        layer = block.layer
        for writer in block.writers:
            add(writer.head_in, Site(head_site(writer), layer, component=writer.component))
        add_modules(layer)
        for writer in block.writers:
            if writer.component == "mlp":
                _add_mlp(add, block)
            add(writer.out, Site(f"{writer.component}_out", layer, component=writer.component))
        add(block.mid, Site("resid_mid", layer))
        if block.writer("mlp") is None:
            _add_mlp(add, block)
        add(block.path if layer == 0 else None, Site("embed_out", -1, component="embed"))
        add(block.path, Site("resid_pre", layer))
        add(block.path, Site("resid_post", layer))
        add(block.path if block is architecture.blocks[-1] else None, Site("resid_final", architecture.n_layers))
    add_modules(architecture.n_layers)
    add(architecture.unembed, Site("logits", architecture.n_layers))
    return tuple(Read(path, tuple(served)) for path, served in at.items())


def head_site(writer: Writer) -> str:
    """The name of the site of a writer's heads: `head_out` of attention, else with the component's name."""
    return "head_out" if writer.component == "attn" else f"{writer.component}_head_out"


def _add_mlp(add: Callable[[str | None, Site], None], block: Block) -> None:
    layer = block.layer
    add(block.router, Site("router", layer))
    add(block.experts, Site(EXPERTS, layer))
    if block.gate is not None:
        add(block.gate.path, Site("gate", layer, block.gate))
        up = block.gate if block.up is None else block.up
        add(up.path, Site("up", layer, up))
    add(block.act, Site("gate_act", layer))


def _site_of(component: Component) -> str:
    """The site that a suite asks for to have what a component adds: all mixers go by `attn_out`."""
    mixer = component in COMPONENTS and component != "mlp"
    return "attn_out" if mixer or component.startswith("attn") else "mlp_out"
