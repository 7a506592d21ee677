"""The parameters of a base under an adapter: what it holds whole, and what changes the rest of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.moved import MovedTensors
from tv.checkpoints.noise import ROUNDING, Noise, coarsest
from tv.checkpoints.parameters import TensorInfo
from tv.checkpoints.tensors import difference

if TYPE_CHECKING:
    from tv.checkpoints.checkpoint import Checkpoint


class Whole(Protocol):
    """A parameter that an adapter holds whole: of a trained module, a trained bias, the embedding under a LoRA."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...

    def load(self, index: int = -1) -> Float[Tensor, "..."]:
        """The parameter, or one entry of its first dimension."""

    def sample(self) -> bytes:
        """A fixed sample of its bytes."""


class Change(Protocol):
    """How the parts of an adapter change one parameter."""

    @property
    def dtype(self) -> str:
        """The coarsest dtype of its parts."""

    @property
    def noise(self) -> Noise: ...

    def step(self, weight: Callable[[], Tensor], expert: int) -> Float[Tensor, "..."]:
        """T over the parameter that `weight` reads, or of one expert of it: float32, in newly allocated memory."""

    def sample(self) -> bytes:
        """A fixed sample of its parts."""


@dataclass(frozen=True)
class Move:
    """What an adapter does to one parameter: it holds it whole, or changes it, or both."""

    whole: Whole | None = None
    change: Change | None = None

    @property
    def dtype(self) -> str:
        parts = [part for part in (self.whole, self.change) if part is not None]
        return coarsest(part.dtype for part in parts)

    def step(self, read: Callable[[int], Tensor], expert: int = -1) -> Float[Tensor, "..."]:
        """T over the base's parameter, of which `read` reads one expert, or all of it at −1."""
        delta = None if self.whole is None else difference(self.whole.load(expert), read(expert))
        if self.change is not None:
            changed = self.change.step(partial((read if self.whole is None else self.whole.load), -1), expert)
            delta = changed if delta is None else delta.add_(changed[: len(delta)])
        assert delta is not None
        return delta

    def sample(self) -> bytes:
        return b"".join(part.sample() for part in (self.whole, self.change) if part is not None)


class AdapterTensors(MovedTensors):
    """The parameters of `base` under an adapter, which makes `moves` by the parameter's name."""

    def __init__(self, base: Checkpoint, moves: Mapping[str, Move], notes: tuple[str, ...]) -> None:
        self._moves = moves
        moved = {}
        for name, move in moves.items():
            shape = base.info(name).shape if move.whole is None else move.whole.shape
            moved[name] = TensorInfo(name, shape, move.dtype)
        super().__init__(base, moved, notes)

    def step(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        return self._moves[name].step(partial(self.base.read, name), expert)

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        move = self._moves.get(name)
        if move is None or move.whole is None:
            return super().read(name, expert)
        whole = move.whole.load(expert)  # with the rows that it adds
        return whole if move.change is None else move.change.step(partial(move.whole.load, -1), expert).add_(whole)

    def rounding(self, name: str) -> Noise:
        move = self._moves[name]
        of_whole = 0.0 if move.whole is None else ROUNDING[move.whole.dtype]
        noise = Noise() if move.change is None else move.change.noise
        return Noise(math.hypot(of_whole, noise.of_weight), noise.of_delta)

    def sample_step(self, name: str) -> bytes:
        return self._moves[name].sample()
