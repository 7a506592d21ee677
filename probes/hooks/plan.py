"""What to read, as data: which module's input and output serve which sites, in execution order."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tv.architecture import Architecture

#: Sites of the whole model and of each block; `embed_out` is what the first block reads.
SITES = (
    "embed_out",
    "resid_pre",
    "head_out",
    "attn_out",
    "resid_mid",
    "gate",
    "mlp_out",
    "resid_post",
    "resid_final",
    "logits",
)
#: The input and output of every module itself: what the ledger reads.
MODULE = "module"


@dataclass(frozen=True)
class Site:
    """A place where a hook reads. `layer` is −1 for the embedding and `n_layers` after the last block."""

    name: str
    layer: int

    def __str__(self) -> str:
        return (
            self.name if self.name in ("embed_out", "resid_final", "logits") else f"{self.name} of layer {self.layer}"
        )


@dataclass(frozen=True)
class Read:
    """One hook: the module at `path` serves these sites. Its input and output are both handed over."""

    path: str
    sites: tuple[Site, ...]


class Seen(NamedTuple):
    """What one hook saw in one model: (batch, pos, …) tensors, the model's own."""

    input: Tensor
    output: Tensor

    def at(self, site: Site) -> Tensor:
        """The tensor that `site` means: an input for some sites, an output for the others."""
        return self.output if site.name in ("attn_out", "mlp_out", "resid_post", "logits") else self.input


def plan(architecture: Architecture, sites: Collection[str]) -> tuple[Read, ...]:
    """The reads that serve `sites` (names out of SITES, or MODULE for every module's input and output).

    A path is hooked once, whatever the number of sites it serves. Raises ValueError for an unknown site.
    """
    if unknown := set(sites) - {*SITES, MODULE}:
        raise ValueError(f"unknown sites {sorted(unknown)}; there are {', '.join((*SITES, MODULE))}")
    at: dict[str, list[Site]] = {}

    def add(path: str | None, site: Site) -> None:
        if path is not None and site.name in sites and site not in at.setdefault(path, []):
            at[path].append(site)

    def add_modules(layer: int) -> None:
        for module in architecture.modules:
            if module.layer == layer:
                add(module.path, Site(MODULE, layer))

    add_modules(-1)
    for block in architecture.blocks:
        # A block's own hook fires when it returns; its input is read then too, so it stands last.
        add(block.head_in, Site("head_out", block.layer))
        add_modules(block.layer)
        add(block.attn_out, Site("attn_out", block.layer))
        add(block.mid, Site("resid_mid", block.layer))
        add(block.gate, Site("gate", block.layer))
        add(block.mlp_out, Site("mlp_out", block.layer))
        add(block.path if block.layer == 0 else None, Site("embed_out", -1))
        add(block.path, Site("resid_pre", block.layer))
        add(block.path, Site("resid_post", block.layer))
    add(architecture.final_norm, Site("resid_final", architecture.n_layers))
    add_modules(architecture.n_layers)
    add(architecture.unembed, Site("logits", architecture.n_layers))
    return tuple(Read(path, tuple(served)) for path, served in at.items())
