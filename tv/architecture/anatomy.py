"""What a model consists of: modules, a weight matrix each or the slice of a fused one, and blocks, where hooks read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Component: TypeAlias = Literal["embed", "attn", "mlp", "unembed", "other"]
#: Where the roles of matrices come from: tv's rules, TransformerLens's adapter, or nowhere.
Roles: TypeAlias = Literal["rules", "adapter", "unknown"]

#: The components of a block, in the order in which it computes.
COMPONENTS: tuple[Component, ...] = ("attn", "mlp")
#: The matrices of a block with dense attention and a GLU, in that order.
MODULES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Module:
    """One weight matrix of the model, norm gains included.

    `layer` is −1 for the embedding and `n_layers` for the final norm and the unembedding, so that it orders by depth.
    """

    layer: int
    name: str  # embed pos_embed q k v o gate up down unembed, router shared_gate …, or a norm: attn_norm q_norm …
    kind: Literal["linear", "norm", "embed"]
    component: Component
    path: str  # of the Hugging Face module that owns the weight
    parameter: str  # of the weight in a checkpoint (the embedding's, where the unembedding is tied to it)
    shape: tuple[int, ...]  # (rows, cols) = (out, in); (d,) for a norm gain
    ranges: tuple[tuple[int, int], ...] = ()  # output rows of a fused matrix that are this module's; () = all
    transposed: bool = False  # stored (in, out), as GPT-2's Conv1D is
    n_heads: int = 0  # heads it is cut into: by rows for q, k, v, by columns for o; 0 = none
    tied: bool = False
    expert: int = -1  # index into a fused tensor of experts (expert, rows, cols); −1 = none

    def matrix(self, stored: Float[Tensor, "..."]) -> Float[Tensor, "rows cols"]:
        """This module's matrix, (out, in), from the tensor as stored (a view wherever that is possible).

        `stored` is the whole parameter, or this module's expert of it alone.
        """
        weight = stored[self.expert] if self.expert >= 0 and stored.ndim == 3 else stored
        return self.outputs(weight.T if self.transposed else weight, dim=0)

    def outputs(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """This module's share of a fused output: its slice of `tensor` along `dim` (the bias, or what a hook saw)."""
        if not self.ranges:
            return tensor
        parts = [tensor.narrow(dim, start, stop - start) for start, stop in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def heads(self, matrix: Float[Tensor, "rows cols"]) -> list[Float[Tensor, "rows_h cols_h"]]:
        """The per-head slices of `matrix`: rows of q, k, v; columns of o."""
        return list(matrix.chunk(self.n_heads, dim=1 if self.name == "o" else 0)) if self.n_heads else []


@dataclass(frozen=True)
class Block:
    """Where hooks read in one transformer block; every field is a module path."""

    layer: int
    path: str  # input = resid_pre, output = resid_post
    attn_out: str  # its output is what attention adds to the residual stream
    mlp_out: str  # its output is what the MLP adds
    mid: str | None  # its input is resid_mid; None where attention and MLP run in parallel
    gate: str | None  # the activation module: its input is the gate (or an MLP's pre-activation); None with experts
    router: str | None  # its output scores the experts; None where there are none
    experts: str | None  # runs all experts of the block in one call, given the chosen ones; None where there are none
    head_in: str  # the output projection: its input is z, heads side by side
    attn_post_norm: str | None  # a norm between the projection and the residual stream (sandwich norms)


@dataclass(frozen=True)
class Architecture:
    """What is known of a model: its sizes, its modules in execution order, its blocks.

    Where no rule fits, there are no blocks, a size missing from the configuration is 0, and `note` says in one line
    where the modules' names come from.
    """

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab_size: int
    context: int
    gated: bool  # the MLPs are GLUs; otherwise the sign of the pre-activation stands in for the gate pattern
    modules: tuple[Module, ...]
    blocks: tuple[Block, ...]
    final_norm: str
    embed: str
    unembed: str
    roles: Roles = "rules"
    note: str = ""

    def module(self, layer: int, name: str, expert: int = -1) -> Module:
        """The module `name` of `layer` (of one expert). Raises KeyError where there is none."""
        module = self._by_place.get((layer, name, expert))
        if module is None:
            raise KeyError(f"no module {name!r} in layer {layer}" + (f", expert {expert}" if expert >= 0 else ""))
        return module

    def owner(self, module: Module) -> Module:
        """The module whose parameter it uses: the embedding of a tied unembedding, of any other the module itself."""
        if not module.tied:
            return module
        return next(m for m in self.modules if m.parameter == module.parameter and not m.tied)

    @property
    def tied(self) -> bool:
        """Whether the unembedding is the embedding's matrix."""
        return any(module.tied for module in self.modules)

    def component_of(self, parameter: str) -> tuple[int, Component]:
        """The component (layer, name) that a parameter of the model belongs to. Every parameter has exactly one."""
        place = parameter
        while place and place not in self._by_path:  # a bias has its matrix's, a stray scalar the nearest module's
            place = place.rpartition(".")[0]
        return self._by_path.get(place, (-1, "embed"))

    @cached_property
    def _by_place(self) -> dict[tuple[int, str, int], Module]:
        return {(module.layer, module.name, module.expert): module for module in reversed(self.modules)}

    @cached_property
    def _by_path(self) -> dict[str, tuple[int, Component]]:
        components: dict[str, tuple[int, Component]] = {}
        for module in self.modules:
            place = module.path if module.tied else module.parameter
            while place:
                components.setdefault(place, (module.layer, module.component))
                place = place.rpartition(".")[0]
        return components
