"""A checkpoint written differently: rows and columns are permuted, scaled and mixed as they are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.noise import ROUNDING, Noise
from tv.checkpoints.parameters import Place, Tensors


@dataclass(frozen=True)
class _Order:
    """How one dimension of a stored tensor (or of one expert of it) is permuted, and scaled entry by entry."""

    dim: int
    index: Int[Tensor, " n"]
    scale: Float[Tensor, " n"]
    offset: float = 0.0  # scaled is what is stored + offset, and stored is that − offset

    @property
    def keeps_bits(self) -> bool:
        return bool((self.scale.abs() == 1).all())

    def apply(self, stored: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The permuted tensor: in its dtype where nothing is scaled, otherwise at least in float32."""
        value = stored.index_select(self.dim, self.index)
        if bool((self.scale == 1).all()):
            return value
        shape = [-1 if i == self.dim else 1 for i in range(value.ndim)]
        if self.keeps_bits and not self.offset:
            return value * self.scale.reshape(shape).to(value.dtype)
        kept = torch.promote_types(value.dtype, torch.float32)
        exact = value.to(torch.promote_types(kept, self.scale.dtype))
        return ((exact + self.offset) * self.scale.reshape(shape) - self.offset).to(kept)

    def noise(self, of_weight: float) -> float:
        return of_weight if self.keeps_bits else math.hypot(of_weight, _ROUNDED)

    def sample(self) -> bytes:
        return self.index.numpy().tobytes() + _coarse(self.scale)


@dataclass(frozen=True)
class _Mix:
    """How entries of one dimension of a stored tensor become linear combinations of each other, block by block."""

    dim: int
    index: Int[Tensor, "blocks d"]
    blocks: Float[Tensor, "blocks d d"]  # float64
    spread: float  # what the mix multiplies the relative error of independent entries by

    keeps_bits = False

    def apply(self, stored: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The mixed tensor, at least in float32."""
        value = stored.to(torch.promote_types(stored.dtype, torch.float32)).movedim(self.dim, 0).clone()
        parts = value[self.index.flatten()].double().reshape(*self.index.shape, -1)
        value[self.index.flatten()] = (self.blocks @ parts).reshape(-1, *value.shape[1:]).to(value.dtype)
        return value.movedim(0, self.dim)

    def noise(self, of_weight: float) -> float:
        return math.hypot(of_weight * self.spread, _ROUNDED)

    def sample(self) -> bytes:
        return self.index.numpy().tobytes() + _coarse(self.blocks)


_Step: TypeAlias = _Order | _Mix
_ROUNDED = 2 * ROUNDING["F32"]  # of a product, and of the factor


class Reordering:
    """The steps in which a checkpoint's tensors are to be read, module by module; fused modules keep their slices.

    A step is taken on what the steps before it made.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._steps: dict[tuple[str, int], tuple[_Step, ...]] = {}

    def outputs(
        self, module: Module, permutation: Int[Tensor, " rows"], scale: Float[Tensor, " rows"] | None = None
    ) -> None:
        """Row i of the module's matrix (and bias) becomes `scale[i]` × its row `permutation[i]`."""
        self._order(module.parameter, module, 1 if module.transposed else 0, permutation, scale, module.rows)
        if (bias := self._bias(module)) is not None:
            self._order(bias, module, 0, permutation, scale, module.rows)

    def inputs(
        self, module: Module, permutation: Int[Tensor, " cols"], scale: Float[Tensor, " cols"] | None = None
    ) -> None:
        """Column i of the module's matrix becomes `scale[i]` × its column `permutation[i]`; not of a fused slice."""
        self._order(module.parameter, module, 0 if module.transposed else 1, permutation, scale, None)

    def gain(self, module: Module, scale: Float[Tensor, " d"], offset: float) -> None:
        """The gain of a norm, stored + offset, and its bias are multiplied by `scale`."""
        everything = torch.arange(len(scale))
        self._order(module.parameter, module, 0, everything, scale, None, offset)
        if (bias := self._bias(module)) is not None:
            self._order(bias, module, 0, everything, scale, None)

    def mix_outputs(self, module: Module, blocks: Float[Tensor, "blocks d d"], spread: float = 1.0) -> None:
        """Each block of d rows R of the module's matrix (and bias) becomes its block of `blocks` times R."""
        self._mix(module.parameter, module, 1 if module.transposed else 0, blocks, spread, module.rows)
        if (bias := self._bias(module)) is not None:
            self._mix(bias, module, 0, blocks, spread, module.rows)

    def mix_inputs(self, module: Module, blocks: Float[Tensor, "blocks d d"], spread: float = 1.0) -> None:
        """Each block of d columns C of the module's matrix becomes C times its block; not of a fused slice."""
        self._mix(module.parameter, module, 0 if module.transposed else 1, blocks.mT, spread, None)

    def touches(self, name: str) -> bool:
        """Whether a parameter is read otherwise than it is stored."""
        return any(own == name for own, _ in self._steps)

    def rounds(self, name: str) -> bool:
        """Whether reading a parameter rounds it again: no permutation does."""
        return any(not step.keeps_bits for (own, _), steps in self._steps.items() if own == name for step in steps)

    def checkpoint(self) -> Checkpoint:
        """The checkpoint after the steps so far; the original where there are none."""
        checkpoint = self._checkpoint
        if not self._steps:
            return checkpoint
        tensors = ReorderedTensors(checkpoint, dict(self._steps))
        return Checkpoint(
            f"{checkpoint.source} (matched)", checkpoint.path, checkpoint.config, checkpoint.architecture, tensors
        )

    def _bias(self, module: Module) -> str | None:
        bias = f"{module.path}.bias"
        own = bias in self._checkpoint.names and bias != module.parameter and module.expert < 0
        return bias if own else None

    def _order(
        self,
        name: str,
        module: Module,
        dim: int,
        permutation: Int[Tensor, " n"],
        scale: Float[Tensor, " n"] | None,
        rows: Int[Tensor, " rows"] | None,
        offset: float = 0.0,
    ) -> None:
        size = self._size(name, module, dim)
        places = torch.arange(size) if rows is None else rows
        index, factor = torch.arange(size), torch.ones(size, dtype=torch.float32 if scale is None else scale.dtype)
        index[places] = places[permutation]
        if scale is not None:
            factor[places] = scale
        self._add(name, module, _Order(dim, index, factor, offset))

    def _mix(
        self,
        name: str,
        module: Module,
        dim: int,
        blocks: Float[Tensor, "blocks d d"],
        spread: float,
        rows: Int[Tensor, " rows"] | None,
    ) -> None:
        places = torch.arange(self._size(name, module, dim)) if rows is None else rows
        self._add(name, module, _Mix(dim, places.reshape(len(blocks), -1), blocks.double(), spread))

    def _size(self, name: str, module: Module, dim: int) -> int:
        shape = self._checkpoint.info(name).shape
        return (shape[1:] if module.expert >= 0 else shape)[dim]

    def _add(self, name: str, module: Module, step: _Step) -> None:
        self._steps[name, module.expert] = (*self._steps.get((name, module.expert), ()), step)


def _coarse(values: Tensor) -> bytes:
    """Bytes that do not depend on the last bits, in which another number of threads may differ."""
    return values.half().numpy().tobytes()


class ReorderedTensors(Tensors):
    """The parameters of `checkpoint`, each written anew when it is read; see `Reordering`."""

    def __init__(self, checkpoint: Checkpoint, steps: dict[tuple[str, int], tuple[_Step, ...]]) -> None:
        self._checkpoint, self._steps = checkpoint, steps
        self.infos = {name: checkpoint.info(name) for name in checkpoint.names}
        self.converted, self.beside = checkpoint.converted, checkpoint.beside
        self.outside = checkpoint.reader.outside
        self.notes = checkpoint.notes
        self._experts = {name: self.infos[name].shape[0] for name, expert in steps if expert >= 0}

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        if name not in self._experts:
            return self._taken(name, -1, self._checkpoint.read(name, expert))
        if expert < 0:
            return torch.stack([self.read(name, i) for i in range(self._experts[name])])
        return self._taken(name, expert, self._checkpoint.read(name, expert))

    def places(self) -> list[Place]:
        return self._checkpoint.places

    def buffers(self) -> dict[str, Tensor]:
        return self._checkpoint.buffers

    def sample(self, name: str) -> bytes:
        steps = sorted((expert, own) for (parameter, expert), own in self._steps.items() if parameter == name)
        return self._checkpoint.sample(name) + b"".join(step.sample() for _, own in steps for step in own)

    def noise(self, name: str) -> Noise:
        noise = self._checkpoint.noise(name)
        own = [steps for (parameter, _), steps in self._steps.items() if parameter == name]
        carried = [reduce(lambda error, step: step.noise(error), steps, noise.of_weight) for steps in own]
        return Noise(max(carried, default=noise.of_weight), noise.of_delta)

    def _taken(self, name: str, expert: int, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        for step in self._steps.get((name, expert), ()):
            value = step.apply(value)
        return value
