"""What an effect is attributed to: components, modules, heads, experts and neurons, and which weights are theirs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from tv.architecture.anatomy import Architecture, Module

Granularity = Literal[
    "component", "module", "head", "kv_head", "expert", "neuron", "type", "direction", "feature", "all"
]
#: A module's rows (True) or columns (False) belong to neurons of the MLP, or of the expert that all tokens share.
_NEURON_ROWS = {"gate": True, "up": True, "down": False}
_NEURON_ROWS |= {f"shared_{name}": rows for name, rows in _NEURON_ROWS.items()}

#: Behind the names of a second attention's matrices: q_2.
_NUMBER = re.compile(r"_\d+$")


#: What some granularities call their units.
_SHOWN = {"kv_head": "kv head", "feature": "feature"}


@dataclass(frozen=True)
class Unit:
    """One thing that may carry an effect. Unused fields are "" or −1; a "type" is one matrix in all layers.

    A "direction" and a "feature" are of a site, which is the `component`; `neuron` is the feature's number.
    """

    granularity: Granularity
    layer: int
    component: str
    module: str = ""
    head: int = -1
    expert: int = -1
    neuron: int = -1

    def __str__(self) -> str:
        """Its readable name: `mlp 3`, `q 3`, `attn 3 head 2`, `embed`, `vision_tower`."""
        name = self.module or self.component
        if self.granularity not in ("type", "all") and self.layer >= 0 and name != "unembed":
            name += f" {self.layer}"
        for part in ("expert", "head", "neuron"):
            if (index := getattr(self, part)) >= 0:
                name += f" {_SHOWN.get(self.granularity, part)} {index}"
        return name


#: Everything that was tuned.
WHOLE = Unit("all", -1, "all")


@dataclass(frozen=True)
class Piece:
    """Weights of a unit: a whole parameter, one expert of it, or some of its rows or columns."""

    parameter: str
    expert: int = -1
    dim: int = 0
    index: Int[Tensor, " k"] | None = None  # along `dim` as stored; None = all


def components(architecture: Architecture) -> list[Unit]:
    """All components, by depth. Every parameter belongs to exactly one."""
    places = {(-1, group.component): None for group in architecture.groups} | {(-1, "embed"): None}
    places |= {(block.layer, writer.component): None for block in architecture.blocks for writer in block.writers}
    places |= {(module.layer, module.component): None for module in (*architecture.others, *architecture.modules)}
    return [Unit("component", *place) for place in sorted(places, key=lambda place: place[0])]


def component_name(layer: int, component: str) -> str:
    """The readable name of a component: `mlp 3`, `embed`."""
    return str(Unit("component", layer, component))


def units_of(architecture: Architecture, granularity: Granularity) -> list[Unit]:
    """All units of one granularity, by depth.

    - module: every matrix and every norm gain, each with its bias; a tied unembedding is the embedding's.
    - head: a head's rows of q and columns of o, and of k and v where every head has its own.
    - kv_head: the rows of k and v that several heads share; none where every head has its own.
    - neuron: a neuron's rows of gate and up and its column of down; of one expert in a mixture.
    """
    if granularity == "component":
        return components(architecture)
    units: dict[Unit, None] = {}  # in order, once
    for module in _all(architecture):
        for unit in _units(module, granularity, architecture):
            units.setdefault(unit)
    return list(units)


def _all(architecture: Architecture) -> list[Module]:
    """Its modules and other parameters, by depth; a group is a component, and the bias of an expert is its matrix's."""
    biases = {f"{module.parameter}_bias" for module in architecture.modules if module.expert >= 0}
    others = [row for row in architecture.others if row.kind != "group" and row.parameter not in biases]
    return sorted((*architecture.modules, *others), key=lambda module: module.layer)


def _units(module: Module, granularity: Granularity, architecture: Architecture) -> Iterator[Unit]:
    place = (module.layer, module.component)
    if granularity == "module" and not module.tied:
        yield Unit("module", *place, module.name, expert=module.expert)
    elif granularity == "expert" and module.expert >= 0:
        yield Unit("expert", *place, expert=module.expert)
    elif granularity == head_granularity(module, architecture):
        for head in range(module.n_heads):
            yield Unit(granularity, *place, head=head)
    elif granularity == "neuron" and module.name in ("down", "shared_down"):
        for neuron in range(module.shape[1]):
            yield Unit("neuron", *place, expert=module.expert, neuron=neuron)


def head_granularity(module: Module, architecture: Architecture) -> Granularity | None:
    """Whether a module splits by heads, or by key-value heads that several heads share; None for neither.

    Where q and o count heads differently, no rows and columns are one head's (DiffLlama's heads read two queries).
    """
    if not module.n_heads:
        return None
    number = _NUMBER.search(module.name)
    suffix = number[0] if number else ""
    q, o = (_heads(module, f"{name}{suffix}", architecture) for name in ("q", "o"))
    if module.name in (f"k{suffix}", f"v{suffix}") and q > module.n_heads:
        return "kv_head"
    return "head" if {q, o} == {module.n_heads} else None


def _heads(module: Module, name: str, architecture: Architecture) -> int:
    """The heads of the matrix of this name in a module's component; the module's own where there is no such one."""
    try:
        beside = architecture.module(module.layer, name)
    except KeyError:
        return module.n_heads
    return beside.n_heads if beside.n_heads and beside.component == module.component else module.n_heads


def pieces(architecture: Architecture, unit: Unit, parameters: Iterable[str]) -> list[Piece]:
    """The weights of a unit; `parameters` are the names of all parameters of the model."""
    if unit == WHOLE:
        return [Piece(name) for name in parameters]
    if unit.granularity == "component":
        place = (unit.layer, unit.component)
        return [Piece(name) for name in parameters if architecture.component_of(name) == place]
    names = set(parameters)
    unit_pieces: list[Piece] = []
    if (unit.layer, unit.module) == (-1, "embed"):  # the matrix of a tied unembedding is here, and so is its bias
        tied = (f"{m.path}.bias" for m in architecture.rows_of(architecture.n_layers, "unembed") if m.tied)
        unit_pieces += [Piece(bias) for bias in tied if bias in names]
    for module in architecture.rows_of(unit.layer, unit.component):
        if not module.tied:
            unit_pieces += _pieces(architecture, unit, module, names)
    return unit_pieces


def _pieces(architecture: Architecture, unit: Unit, module: Module, names: set[str]) -> Iterator[Piece]:
    if unit.granularity == "module":
        belongs = module.name == unit.module and module.expert == unit.expert
        rows, cols = belongs, False
        which: Int[Tensor, " k"] | None = None
    elif unit.granularity == "expert":
        belongs = module.expert == unit.expert
        rows, cols, which = belongs, False, None
    elif unit.granularity == "neuron":
        belongs = module.name in _NEURON_ROWS and module.expert == unit.expert
        rows = belongs and _NEURON_ROWS[module.name]
        cols, which = belongs and not rows, torch.tensor([unit.neuron])
    else:
        belongs = head_granularity(module, architecture) == unit.granularity
        rows = belongs and not module.from_heads
        cols, which = belongs and not rows, None
        if belongs:
            size = module.shape[0 if rows else 1] // module.n_heads
            which = torch.arange(size) + unit.head * size
    if rows:
        index = _rows(module, which)
        yield Piece(module.parameter, module.expert, 1 if module.transposed else 0, index)
        bias = f"{module.path}.bias" if module.expert < 0 else f"{module.parameter}_bias"
        if bias in names and module.kind in ("linear", "norm"):
            yield Piece(bias, module.expert, 0, index)
    elif cols:
        yield Piece(module.parameter, module.expert, 0 if module.transposed else 1, which)


def _rows(module: Module, which: Int[Tensor, " k"] | None) -> Int[Tensor, " k"] | None:
    """Rows of a module as rows of the parameter that holds it; None for all of them."""
    if module.rows is None:
        return which
    return module.rows if which is None else module.rows[which]


def replaced(
    parameters: Mapping[str, Tensor], others: Mapping[str, Tensor], wanted: Sequence[Piece]
) -> dict[str, Tensor]:
    """The parameters that change when these pieces come from `others`: whole, or as partly changed copies."""
    changed: dict[str, Tensor] = {}
    whole = {piece.parameter for piece in wanted if piece.index is None and piece.expert < 0}
    for piece in wanted:
        name = piece.parameter
        other = others[name].detach().to(parameters[name].device)
        if name in whole:
            changed[name] = other
            continue
        if name not in changed:
            changed[name] = parameters[name].detach().clone()
        into = changed[name] if piece.expert < 0 else changed[name][piece.expert]
        source = other if piece.expert < 0 else other[piece.expert]
        if piece.index is None:
            into.copy_(source)
        else:
            at = piece.index.to(into.device)
            into.index_copy_(piece.dim, at, source.index_select(piece.dim, at))
    return changed
