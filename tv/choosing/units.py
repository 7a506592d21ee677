"""The parts of a model that have a scale of their own, and a tuning vector with every part at its scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tv.architecture.anatomy import Architecture, Module
from tv.arithmetic.methods.layout import Piece, layout
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError, choices

Granularity = Literal["component", "module", "head"]


@dataclass(frozen=True)
class Unit:
    """A part of the model: a component of a layer, a module, or one head's share of a module."""

    layer: int
    name: str

    @property
    def label(self) -> str:
        """Its name for people: "attn 3"."""
        return f"{self.name} {self.layer}"


@dataclass(frozen=True)
class Cut:
    """A model cut into units: every entry of every parameter belongs to one."""

    units: tuple[Unit, ...]
    places: Mapping[str, Int[Tensor, "..."]]  # by parameter: the unit of each entry, of a shape that broadcasts to it

    def scales_of(self, name: str, scales: Float[Tensor, " units"]) -> Float[Tensor, "..."]:
        """The scale of each entry of a parameter, of a shape that broadcasts to it."""
        return scales[self.places[name].to(scales.device)]

    def sums(self, name: str, entries: Float[Tensor, "..."]) -> Float[Tensor, " units"]:
        """What the entries of a parameter sum up to in each unit, float64."""
        place = self.places[name].to(entries.device)
        apart = [dim for dim in range(entries.ndim) if place.shape[dim] == 1]
        sums = entries.double().sum(apart, keepdim=True) if apart else entries.double()
        total = torch.zeros(len(self.units), dtype=torch.float64, device=entries.device)
        return total.index_add_(0, place.flatten(), sums.flatten())


def cut(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], by: Granularity = "component") -> Cut:
    """The model of these parameters cut by component of a layer, by module, or by head where a module has heads.

    A norm belongs to the component that reads it; the experts of a layer share one unit. Raises InputError for another
    granularity.
    """
    if by not in get_args(Granularity):
        raise InputError(f"no granularity {by!r}{choices(by, get_args(Granularity))}")
    modules = {(m.parameter, m.ranges, m.expert): m for m in architecture.modules if not m.tied}
    units: dict[Unit, int] = {}
    places = {}
    for name, pieces in layout(architecture, dict(shapes)).items():
        of_entry = torch.zeros(shapes[name], dtype=torch.int32)
        for piece in pieces:
            share = piece.take(of_entry)
            module = modules.get((piece.parameter, piece.ranges, piece.expert))
            piece.put(of_entry, _numbered(piece, module, share, units, by))
        places[name] = _narrowed(of_entry)
    order = sorted(units, key=lambda unit: (unit.layer, units[unit]))
    rank = torch.empty(len(order), dtype=torch.int64)
    rank[[units[unit] for unit in order]] = torch.arange(len(order))
    return Cut(tuple(order), {name: rank[place.long()] for name, place in places.items()})


def _numbered(piece: Piece, module: Module | None, share: Tensor, units: dict[Unit, int], by: Granularity) -> Tensor:
    """The number of the unit that each entry of a piece belongs to; units that are new are added."""
    if by == "component":
        return torch.full_like(share, units.setdefault(Unit(piece.layer, piece.component), len(units)))
    name = piece.name if piece.name != "other" else f"{piece.component} {piece.name}"
    heads = module.n_heads if by == "head" and module is not None and share.ndim == 2 else 0
    if not heads:
        return torch.full_like(share, units.setdefault(Unit(piece.layer, name), len(units)))
    numbered = torch.empty_like(share)
    assert module is not None
    for head, entries in enumerate(numbered.chunk(heads, dim=1 if module.from_heads else 0)):
        entries.fill_(units.setdefault(Unit(piece.layer, f"{name}.{head}"), len(units)))
    return numbered


def _narrowed(of_entry: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """The same with every axis along which nothing changes cut to one entry."""
    for dim in range(of_entry.ndim):
        first = of_entry.narrow(dim, 0, 1) if of_entry.shape[dim] else of_entry
        if of_entry.shape[dim] and bool((of_entry == first).all()):
            of_entry = first
    return of_entry.clone()


def scaled(vector: TuningVector, division: Cut, scales: Sequence[float], record: Mapping[str, object]) -> TuningVector:
    """T with every unit at its scale. `record` is kept in its provenance, beside the scales."""
    by_unit = torch.tensor(list(scales), dtype=torch.float32)
    chosen = {unit.label: round(float(scale), 6) for unit, scale in zip(division.units, by_unit, strict=True)}

    def rows(name: str, delta: Tensor, expert: int) -> Tensor:
        factors = division.scales_of(name, by_unit)
        if expert >= 0:
            factors = factors[expert if len(factors) > 1 else 0]
        return delta * factors.to(delta.device)

    return TuningVector(
        vector.shapes,
        lambda name: rows(name, vector[name], -1),
        vector.provenance | {"scales": chosen, **record},
        lambda name, index: rows(name, vector.expert(name, index), index),
    )
