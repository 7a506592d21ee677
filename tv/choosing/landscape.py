"""A live model at θ + Σ λ_iu T_iu, a scale for every vector i and unit u, and how behaviour changes with the scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tv.architecture.values import values_of
from tv.arithmetic.variants import Mover
from tv.checkpoints.vector import TuningVector
from tv.choosing.asked import Asked
from tv.choosing.units import Cut
from tv.runtime.common_rows import common_rows
from tv.stats.means import Floats


class Landscape:
    """The model is moved in place, and every T is held in memory, float32: a sweep reads each once.

    Raises InputError for a vector that does not fit the model.
    """

    def __init__(self, model: PreTrainedModel, vectors: Sequence[TuningVector], division: Cut) -> None:
        Mover(model, vectors)  # refuses what does not fit
        self.model, self.division = model, division
        named = values_of(model) | dict(model.named_parameters(remove_duplicate=False))
        own = {id(value): name for name, value in values_of(model).items()}
        self._moved: dict[str, tuple[Tensor, Tensor, list[Tensor | None]]] = {}
        for i, vector in enumerate(vectors):
            for name in vector.names:
                value = named[name]
                at = own[id(value)]
                _, _, deltas = self._moved.setdefault(at, (value, value.detach().clone(), [None] * len(vectors)))
                if deltas[i] is None:
                    deltas[i] = vector[name].to(value.device, torch.float32)
        self._vectors = len(vectors)
        for value in named.values():
            value.requires_grad_(False)
        self.energy = np.stack([self._energy(i) for i in range(len(vectors))])

    @property
    def shape(self) -> tuple[int, int]:
        """(vectors, units)."""
        return self._vectors, len(self.division.units)

    @torch.no_grad()
    def to(self, scales: Floats) -> None:
        """Move to these (vectors, units) scales, from wherever the model is."""
        by_unit = torch.tensor(np.asarray(scales).reshape(self.shape), dtype=torch.float32)
        for name, (value, kept, deltas) in self._moved.items():
            value.copy_(kept)
            for one, delta in zip(by_unit, deltas, strict=True):
                if delta is not None:
                    target, step = common_rows(value, delta)
                    target += self.division.scales_of(name, one).to(value.device) * step

    @contextmanager
    def at(self, scales: Floats) -> Iterator[None]:
        """The model at these scales, and back at θ."""
        self.to(scales)
        try:
            yield
        finally:
            self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Back to θ, bit for bit."""
        for value, kept, _ in self._moved.values():
            value.copy_(kept)

    def gradient(self, asked: Sequence[tuple[Asked, Floats]]) -> tuple[list[Floats], Floats]:
        """Each set's values (prompts,), and the gradient (vectors, units) of Σ weight × value by the scales, here.

        A prompt of weight 0 is not run; its value is NaN.
        """
        tensors = [value for value, _, _ in self._moved.values()]
        for value in tensors:
            value.requires_grad_(True)
        try:
            values = [one.backward(self.model, weights) for one, weights in asked]
            with torch.no_grad():
                slope = self._along([value.grad for value in tensors])
        finally:
            for value in tensors:
                value.grad = None
                value.requires_grad_(False)
        return values, slope

    def _along(self, gradients: Sequence[Tensor | None]) -> Floats:
        slope = torch.zeros(self.shape, dtype=torch.float64)
        for (name, (_, _, deltas)), gradient in zip(self._moved.items(), gradients, strict=True):
            for i, delta in enumerate(deltas):
                if delta is not None and gradient is not None:
                    here, step = common_rows(gradient, delta)
                    slope[i] += self.division.sums(name, here * step).cpu()
        found: Floats = slope.numpy()
        return found

    def _energy(self, i: int) -> Floats:
        """‖T_i‖² of every unit."""
        total = torch.zeros(len(self.division.units), dtype=torch.float64)
        for name, (_, _, deltas) in self._moved.items():
            if (delta := deltas[i]) is not None:
                total += self.division.sums(name, delta.double().square()).cpu()
        found: Floats = total.numpy()
        return found


def whole(landscape: Landscape, scales: Sequence[float]) -> Floats:
    """One scale a vector, the same for all of its units."""
    given: Float[Tensor, "vectors 1"] = torch.tensor(list(scales), dtype=torch.float64)[:, None]
    spread: Floats = given.expand(landscape.shape).numpy()
    return spread
