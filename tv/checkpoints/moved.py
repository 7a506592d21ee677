"""A tuned side given as a base and T: T is read as the source holds it, never as a difference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.noise import Noise
from tv.checkpoints.parameters import Place, TensorInfo, Tensors

if TYPE_CHECKING:
    from tv.checkpoints.checkpoint import Checkpoint


class MovedTensors(Tensors):
    """The parameters of `base` moved by T. `moved` describes those that T moves; the others are the base's."""

    base: Checkpoint

    def __init__(self, base: Checkpoint, moved: Mapping[str, TensorInfo], notes: tuple[str, ...]) -> None:
        self.base, self.notes, self._moved = base, notes, moved
        self.infos = {name: moved.get(name, base.info(name)) for name in base.names}
        self.beside = {name: moved.get(name, info) for name, info in base.beside.items()}
        self.outside, self.converted = base.reader.outside, base.converted

    @property
    def moved(self) -> Collection[str]:
        return self._moved.keys()

    @abstractmethod
    def step(self, name: str, expert: int) -> Float[Tensor, "..."]:
        """T of a parameter that it moves, or of one expert of it, float32, in newly allocated memory."""

    @abstractmethod
    def rounding(self, name: str) -> Noise:
        """The noise of a parameter that it moves."""

    @abstractmethod
    def sample_step(self, name: str) -> bytes:
        """A fixed sample of the bytes that make up T."""

    def delta(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        """T of a parameter, or of one expert of it, float32; of a grown vocabulary the rows in common."""
        if name in self._moved:
            return self.step(name, expert)
        shape = (self.infos.get(name) or self.beside[name]).shape
        return torch.zeros(shape if expert < 0 else shape[1:])

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        before = self.base.read(name, expert)
        if name not in self._moved:
            return before
        delta = self.step(name, expert)
        return delta.add_(before[: len(delta)] if delta.ndim else before)

    def noise(self, name: str) -> Noise:
        return self.rounding(name) if name in self._moved else Noise()

    def places(self) -> list[Place]:
        return self.base.places

    def buffers(self) -> dict[str, Tensor]:
        return self.base.buffers

    def sample(self, name: str) -> bytes:
        return self.base.sample(name) + (self.sample_step(name) if name in self._moved else b"")
