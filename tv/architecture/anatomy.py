"""What a model consists of: modules, a weight matrix each or the slice of a fused one, and blocks, where hooks read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: `embed`, `unembed`, what a block writes (out of COMPONENTS, or a name of the model's own), a part beside the text
#: model (`vision_tower`), or `other`.
Component: TypeAlias = str
#: A matrix, a norm's gain, an embedding; of other parameters: a vector (or any array), or a group of parameters.
Kind: TypeAlias = Literal["linear", "norm", "embed", "vector", "group"]
#: Where the roles of matrices come from: tv's rules, or nowhere.
Roles: TypeAlias = Literal["rules", "unknown"]

#: What mixes positions: attention, linear attention, a state space, a convolution, a recurrence.
MIXERS: tuple[Component, ...] = ("attn", "linear_attn", "ssm", "conv", "rnn")
#: The components of a block, in the order in which it computes.
COMPONENTS: tuple[Component, ...] = (*MIXERS, "mlp")
#: The matrices of a block with dense attention and a GLU, in that order.
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
#: The matrices whose columns, not rows, are cut by heads: they read z.
FROM_HEADS = ("o", "out_proj")


def in_order(components: Iterable[Component]) -> tuple[Component, ...]:
    """Each once: those of COMPONENTS in the order in which a block computes, then all others as they come."""
    found = dict.fromkeys(components)
    known = [name for name in COMPONENTS if name in found]
    return (*known, *(name for name in found if name not in known))


@dataclass(frozen=True)
class Module:
    """One weight matrix or norm gain of the model, or another parameter that is a row of `weights` and no more.

    `layer` is −1 for the embedding and `n_layers` for the final norm and the unembedding, so that it orders by depth.
    A `group` is all parameters below a path (a vision tower), as one row of sums.
    """

    layer: int
    name: str  # embed q k v o gate up down unembed router …, a norm: attn_norm q_norm …, or its own: in_proj, sinks
    kind: Kind
    component: Component
    path: str  # of the Hugging Face module that owns the weight
    parameter: str  # of the weight in a checkpoint (the embedding's, where the unembedding is tied to it)
    shape: tuple[int, ...]  # (rows, cols) = (out, in); (d,) for a norm gain; as stored for other parameters
    ranges: tuple[tuple[int, int], ...] = ()  # output rows of a fused matrix that are this module's; () = all
    step: int = 1  # of each range every how many rows: 2 where gate and up rows alternate
    transposed: bool = False  # stored (in, out), as GPT-2's Conv1D is
    n_heads: int = 0  # heads it is cut into: by columns for FROM_HEADS, by rows for all others; 0 = none
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
        dim = dim % tensor.ndim
        every = (slice(None),) * dim
        parts = [tensor[(*every, slice(start, stop, self.step))] for start, stop in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    @property
    def rows(self) -> Int[Tensor, " rows"] | None:
        """The rows of the parameter that are this module's; None = all."""
        if not self.ranges:
            return None
        return torch.cat([torch.arange(start, stop, self.step) for start, stop in self.ranges])

    def heads(self, matrix: Float[Tensor, "rows cols"]) -> list[Float[Tensor, "rows_h cols_h"]]:
        """The per-head slices of `matrix`: columns of FROM_HEADS, rows of all others."""
        return list(matrix.chunk(self.n_heads, dim=1 if self.from_heads else 0)) if self.n_heads else []

    @property
    def from_heads(self) -> bool:
        """Whether it reads z, heads side by side, so that its columns are cut by heads."""
        return self.name.rstrip("_0123456789") in FROM_HEADS


@dataclass(frozen=True)
class Writer:
    """A component of a block: one thing that it adds to the residual stream. Paths are of modules."""

    component: Component
    path: str  # computes it
    out: str  # its output reaches the stream, times a factor that the proof finds: of `path`, or of a norm behind it
    reads: str | None  # its input is the stream that the component sees; None where it sees resid_pre, as in parallel
    head_in: str | None = None  # the output projection: its input is z, heads side by side; None without heads
    head_module: Module | None = None  # the same as a module
    post_norm: str | None = None  # a norm between the component and the stream (sandwich norms): then it is `out`


@dataclass(frozen=True)
class Block:
    """Where hooks read in one block; every path is a module's."""

    layer: int
    path: str  # input = resid_pre, output = resid_post
    writers: tuple[Writer, ...]  # in the order in which they compute
    act: str | None = None  # the activation module: its output is gate_act; None where there is none, and with experts
    gate: Module | None = None  # the sign of its output is the gate pattern: of the MLP, or of the shared expert
    up: Module | None = None
    router: str | None = None  # its output scores the experts; None where there are none
    experts: str | None = None  # runs all experts of the block in one call, given the chosen ones; None without any

    def writer(self, component: Component) -> Writer | None:
        """The writer of this name; None where the block has none."""
        return next((writer for writer in self.writers if writer.component == component), None)

    @property
    def mid(self) -> str | None:
        """The module whose input is the stream between mixer and MLP; None where they run in parallel or alone."""
        return self.writers[-1].reads if len(self.writers) > 1 else None


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
    modules: tuple[Module, ...]  # matrices and norm gains
    blocks: tuple[Block, ...]
    final_norm: str
    embed: str
    unembed: str
    roles: Roles = "rules"
    note: str = ""
    #: Rows of `weights` for all parameters that are no module nor the bias of one: sinks, kernels, scalars, groups.
    others: tuple[Module, ...] = ()
    #: Modules that the ledger leaves out: their output is not what their weights alone make of their input.
    unread: frozenset[Module] = frozenset()
    #: Whether a block passes on its output alone, so that the first blocks can be skipped once they have computed.
    chained: bool = True
    #: Whether a prompt's outputs are the same beside padding, so that prompts of several lengths make a batch.
    padded: bool = True

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

    @property
    def components(self) -> tuple[Component, ...]:
        """The names of what its blocks write, in the order in which a block computes."""
        return in_order(writer.component for block in self.blocks for writer in block.writers)

    @property
    def groups(self) -> tuple[Module, ...]:
        """The parts beside the text model, each a component of its own."""
        return tuple(module for module in self.others if module.kind == "group")

    def rows_of(self, layer: int, component: Component) -> list[Module]:
        """The modules and other parameters of one component, in order; a group is a component and no module."""
        return self._rows.get((layer, component), [])

    @cached_property
    def _rows(self) -> dict[tuple[int, Component], list[Module]]:
        rows: dict[tuple[int, Component], list[Module]] = {}
        for module in (*self.modules, *self.others):
            if module.kind != "group":
                rows.setdefault((module.layer, module.component), []).append(module)
        return rows

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
        for module in (*self.others, *self.modules):
            place, owner = module.path if module.tied else module.parameter, self.owner(module)
            if module.kind == "group":
                components[place] = (module.layer, module.component)
                continue
            while place:
                components.setdefault(place, (owner.layer, owner.component))
                place = place.rpartition(".")[0]
        return components
