"""The interface of every source of parameters: a model's files, a live model, GGUF, an adapter, a tuning vector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.noise import ROUNDING, Noise

if TYPE_CHECKING:
    from tv.checkpoints.checkpoint import Checkpoint

DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
#: (first row, row after the last) → those rows of a T, float32: a T that need not be in memory as a whole.
Rows: TypeAlias = Callable[[int, int], Tensor]
#: Stored dtypes that are read as they are.
FLOATS = frozenset(DTYPES.values())


@dataclass(frozen=True)
class TensorInfo:
    """One parameter or buffer of the model, as a checkpoint holds it."""

    name: str  # in the model
    shape: tuple[int, ...]  # in the model
    dtype: str  # as stored, in safetensors' (or GGUF's) words: BF16, F16, F32, F8_E4M3, Q4_1, …


@dataclass(frozen=True)
class Place:
    """A tensor of a model's files, and what it holds: a parameter or buffer, an expert of it, or rows of that."""

    key: str  # its name in the files
    name: str  # of the parameter or buffer
    expert: int = -1
    rows: tuple[int, int] | None = None


def rows_of(delta: Float[Tensor, "rows ..."]) -> Rows:
    """The rows of a T that is in memory."""
    return lambda start, stop: delta[start:stop]


class Tensors(ABC):
    """Where a checkpoint's parameters come from. A source defines how it reads, and overrides other defaults."""

    infos: Mapping[str, TensorInfo]  # what is known of each parameter
    beside: Mapping[str, TensorInfo] = MappingProxyType({})  # floats that are no parameters: buffers, unused heads
    outside: Collection[str] = ()  # those of them that no module takes
    converted: Sequence[Sequence[str]] = ()  # parameters that transformers makes of other tensors, by what they share
    notes: tuple[str, ...] = ()  # what a reader should know of them
    native: bool = True  # transformers loads these files itself; otherwise a live model is filled from here
    base: Checkpoint | None = None  # what T moves, where the source holds T; None for a full model

    @abstractmethod
    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        """A parameter, or one expert of it, on the CPU."""

    def rows(self, name: str, indices: Sequence[int]) -> Float[Tensor, "n ..."]:
        """Some entries of a parameter's first dimension, on the CPU."""
        return self.read(name)[list(indices)]

    @abstractmethod
    def sample(self, name: str) -> bytes:
        """A fixed sample of its bytes."""

    @property
    def moved(self) -> Collection[str]:
        """The parameters that T moves; for a full model, all."""
        return self.infos.keys()

    def delta(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        """T of a parameter over `base`. Raises TypeError for a full model, whose T is a difference."""
        raise TypeError(f"{type(self).__name__} holds no T")

    def noise(self, name: str) -> Noise:
        """What rounding a parameter carries."""
        return Noise(of_weight=ROUNDING.get((self.infos.get(name) or self.beside[name]).dtype, 0.0))

    def places(self) -> list[Place]:
        """The tensors of its files that make up its parameters and `beside`, or would if they were written."""
        return [Place(name, name) for name in (*self.infos, *self.beside)]

    def buffers(self) -> dict[str, Tensor]:
        """What the model needs from its files besides numbers that training changes: tables of integers, masks."""
        return {}
