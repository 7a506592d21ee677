"""Which matrices a parameter consists of: fused ones are merged slice by slice, experts one by one.

So q, k and v are merged alike whether an architecture stores them apart or in one tensor.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tv.architecture.anatomy import Architecture, Component, Module


@dataclass(frozen=True)
class Piece:
    """A matrix inside of a parameter, or a parameter that is no matrix (or one module's share of it)."""

    parameter: str
    layer: int
    name: str  # of the module; "other" where it belongs to none
    component: Component
    path: str = ""  # of the module that owns it
    is_matrix: bool = False  # of a linear map: an embedding, a norm's gain and a bias are none
    expert: int = -1
    ranges: tuple[tuple[int, int], ...] = ()
    step: int = 1  # of each range every how many rows
    transposed: bool = False

    def take(self, stored: Tensor) -> Tensor:
        """This piece of the parameter (or of its expert), (out, in) where it is a matrix."""
        view = self._view(stored)
        return torch.cat([view[start : stop : self.step] for start, stop in self.ranges]) if self.ranges else view

    def within(self, start: int, stop: int) -> Piece | None:
        """This piece of some rows of the stored matrix; None where it has none of them."""
        if self.transposed or not self.ranges:  # they are its columns, or all its rows
            return self
        held = []
        for first, last in self.ranges:
            skipped = max(0, -(-(start - first) // self.step)) * self.step
            if first + skipped < min(last, stop):
                held.append((first + skipped - start, min(last, stop) - start))
        return replace(self, ranges=tuple(held)) if held else None

    def put(self, stored: Tensor, value: Tensor) -> None:
        """Write it back."""
        view, at = self._view(stored), 0
        if not self.ranges:
            view.copy_(value)
        for start, stop in self.ranges:
            n = len(range(start, stop, self.step))
            view[start : stop : self.step] = value[at : at + n]
            at += n

    def _view(self, stored: Tensor) -> Tensor:
        view = stored[self.expert] if self.expert >= 0 and stored.ndim == 3 else stored
        return view.T if self.transposed else view


def layout(architecture: Architecture, shapes: dict[str, tuple[int, ...]]) -> dict[str, list[Piece]]:
    """The pieces of every parameter in `shapes`: together they are each of its entries once."""
    weights: dict[str, list[Module]] = defaultdict(list)
    biases: dict[str, list[Module]] = defaultdict(list)
    for module in architecture.modules:
        if not module.tied:
            weights[module.parameter].append(module)
            biases[f"{module.path}.bias"].append(module)
    of_experts = {f"{module.parameter}_bias" for module in architecture.modules if module.expert >= 0}
    pieces_by_name = {}
    for name, shape in shapes.items():
        pieces = [_weight(module, len(shape)) for module in weights[name]]
        pieces = pieces or [_bias(name, module) for module in biases[name] if len(shape) == 1]
        whole = len(pieces) == 1 and not pieces[0].ranges and pieces[0].expert < 0
        entries = sum(math.prod(module.shape) for module in weights[name]) if len(shape) > 1 else _rows(pieces)
        named = whole or (pieces and entries == math.prod(shape))
        pieces_by_name[name] = pieces if named else _unnamed(architecture, name, shape, name in of_experts)
    return pieces_by_name


def _weight(module: Module, ndim: int) -> Piece:
    is_matrix = module.kind == "linear" and (ndim == 2 or (ndim == 3 and module.expert >= 0))
    return Piece(
        module.parameter,
        module.layer,
        module.name,
        module.component,
        module.path,
        is_matrix,
        module.expert,
        module.ranges,
        module.step,
        module.transposed,
    )


def _bias(name: str, module: Module) -> Piece:
    return Piece(name, module.layer, module.name, module.component, module.path, ranges=module.ranges, step=module.step)


def _rows(pieces: list[Piece]) -> int:
    return sum(len(range(start, stop, piece.step)) for piece in pieces for start, stop in piece.ranges)


def _unnamed(architecture: Architecture, name: str, shape: tuple[int, ...], stacked_bias: bool) -> list[Piece]:
    """A parameter that modules cover only in part or not at all: whole, but split by expert."""
    layer, component = architecture.component_of(name)
    path = name.rpartition(".")[0]
    experts = range(shape[0]) if len(shape) == 3 else range(-1, 0)
    is_matrix = len(shape) in (2, 3) and path != architecture.embed and not stacked_bias
    return [Piece(name, layer, "other", component, path, is_matrix, expert) for expert in experts]
