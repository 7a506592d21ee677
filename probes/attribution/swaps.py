"""The weights of a variant: parts of the other model, or of a control vector, in place of a model's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.forwards import Swap, Variant
from probes.attribution.subspaces import Bases, groups_of, with_parts
from probes.attribution.units import Piece, Unit, pieces, replaced
from probes.capture.pair import Pair
from tv.architecture.anatomy import Architecture, Module
from tv.architecture.values import values_of
from tv.arithmetic.controls import control
from tv.checkpoints.extraction import extract
from tv.checkpoints.streamed import is_streamed, stored_values
from tv.checkpoints.vector import TuningVector
from tv.runtime.common_rows import common_rows
from tv.runtime.seeds import seed_of


class Swaps:
    """What every variant of a pair swaps. `make_bases` makes the pretrained subspaces that a part is of."""

    def __init__(self, pair: Pair, seed: int, make_bases: Callable[[], Bases]) -> None:
        self._pair, self._seed, self._make_bases = pair, seed, make_bases

    def of(self, variant: Variant) -> Swap:
        """The parameters that it changes, made on demand."""
        return Swap(partial(self._tensors, variant), self._first(variant))

    def levels(self, variant: Variant) -> dict[int, Variant] | None:
        """By level where its weights act, see `levels_of`, the variant with only the units that act there.

        Units that fine-tuning did not move change nothing. None where some of the weights act nobody knows where.
        """
        acting: dict[int, list[Unit]] = {}
        for unit in variant.units:
            for name in self._names(variant, unit):
                levels = self._levels[name]
                if levels is None:
                    return None
                for level in levels:
                    acting.setdefault(level, []).append(unit)
        return {level: replace(variant, units=tuple(dict.fromkeys(units))) for level, units in acting.items()}

    def at(self, level: int, variant: Variant) -> Mapping[str, Tensor]:
        """The parameters that a variant changes at one level."""
        return self._tensors(variant, level)

    def _tensors(self, variant: Variant, level: int | None = None) -> Mapping[str, Tensor]:
        def acts(name: str) -> bool:
            return level is None or level in (self._levels[name] or ())

        if variant.part:
            (unit,) = variant.units
            modules = [module for module in self._within[unit] if acts(module.parameter)]
            return with_parts(self._pair, self._bases, modules, variant.part, variant.control, self._seed)
        names = dict.fromkeys(name for unit in variant.units for name in self._names(variant, unit) if acts(name))
        if variant.control:
            # A draw is made from its number alone.
            seed = self._seed if variant.draw == 0 else seed_of(f"{self._seed} {variant.draw}")
            drawn = control(self._vector, variant.control, seed)
            return OnDemand(names, lambda name: _stepped(self._values["base"][name], drawn[name]))
        own, other = self._values["base"], self._values["tuned"]
        if variant.model == "tuned":
            own, other = other, own
        wanted: dict[str, list[Piece]] = {name: [] for name in names}
        for piece in (piece for unit in variant.units for piece in self._pieces(unit)):
            if piece.parameter in wanted:
                wanted[piece.parameter].append(piece)
        return OnDemand(names, lambda name: replaced(own, other, wanted[name])[name])

    def _names(self, variant: Variant, unit: Unit) -> list[str]:
        """The parameters of a unit that a variant changes."""
        if variant.part:
            return [module.parameter for module in self._within[unit]]
        names = [piece.parameter for piece in self._pieces(unit) if piece.parameter in self._moved]
        return [name for name in names if name in self._vector.shapes] if variant.control else names

    def _first(self, variant: Variant) -> int:
        """No block before it has any of the parameters."""
        n_layers = self._pair.architecture.n_layers
        if variant.part:
            return min(module.layer for unit in variant.units for module in self._within[unit])
        return min((unit.layer for unit in variant.units), default=n_layers)

    def _pieces(self, unit: Unit) -> list[Piece]:
        if unit not in self._known_pieces:
            self._known_pieces[unit] = pieces(self._pair.architecture, unit, self._values["base"])
        return self._known_pieces[unit]

    @cached_property
    def _known_pieces(self) -> dict[Unit, list[Piece]]:
        return {}

    @cached_property
    def _values(self) -> dict[str, Mapping[str, Tensor]]:
        return {"base": stored_values(self._pair.base), "tuned": stored_values(self._pair.tuned)}

    @cached_property
    def _moved(self) -> set[str]:
        """The parameters that fine-tuning moved."""
        base, tuned = self._values["base"], self._values["tuned"]
        return {name for name in base if not torch.equal(base[name], tuned[name].to(base[name].device))}

    @cached_property
    def _levels(self) -> dict[str, tuple[int, ...] | None]:
        return levels_of(self._pair.base, self._pair.architecture)

    @cached_property
    def _vector(self) -> TuningVector:
        if is_streamed(self._pair.base):
            return _between(self._values["base"], self._values["tuned"], values_of(self._pair.base))
        return extract(self._pair.base, self._pair.tuned)

    @cached_property
    def _bases(self) -> Bases:
        return self._make_bases()

    @cached_property
    def _within(self) -> dict[Unit, list[Module]]:
        return groups_of(list(self._bases), one_by_one=True)


def levels_of(model: PreTrainedModel, architecture: Architecture) -> dict[str, tuple[int, ...] | None]:
    """Where every parameter acts: −1 before the blocks, a block's layer, n_layers behind them; None: nobody knows.

    A tied matrix acts before the blocks and behind them, and one that blocks share in each.
    """
    places = {f"{block.path}.": block.layer for block in architecture.blocks}
    positions = {module.path for module in architecture.modules if module.name == "pos_embed"}
    places |= {f"{path}.": -1 for path in (architecture.embed, *positions)}
    places |= {f"{path}.": architecture.n_layers for path in (architecture.final_norm, architecture.unembed)}
    acting: dict[int, set[int | None]] = {}
    for name, value in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        level = next((level for path, level in places.items() if name.startswith(path)), None)
        acting.setdefault(id(value), set()).add(level)
    found: dict[str, tuple[int, ...] | None] = {}
    for name, value in values_of(model).items():
        levels = [level for level in acting[id(value)] if level is not None]
        found[name] = tuple(sorted(levels)) if len(levels) == len(acting[id(value)]) else None
    return found


class OnDemand(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for: of a model that is larger than memory not all can be there."""

    def __init__(self, names: Collection[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without making it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _between(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> TuningVector:
    """T from what is in memory of both models; `named` are the base's values, of which the shapes are known."""

    def step(name: str, index: int = -1) -> Tensor:
        before, after = (values[name].detach() for values in (base, tuned))
        if index >= 0:
            before, after = before[index], after[index]
        before, after = common_rows(before, after)
        return after.to(before.device).float() - before.float()

    return TuningVector({name: tuple(value.shape) for name, value in named.items() if name in tuned}, step, {}, step)


def _stepped(before: Tensor, step: Tensor) -> Tensor:
    """A parameter + its step; with a grown vocabulary, only in the rows that both have."""
    if before.shape == step.shape:
        return before.detach() + step.to(before)
    moved = before.detach().clone()
    there, step = common_rows(moved, step)
    there += step.to(there)
    return moved
