"""Control vectors: what a tuning vector would do if its size, its entries or its spectrum were all there is to it.

Each is lazy like the vector it stands for, and is drawn parameter by parameter (of a fused tensor, expert by expert)
from the seed and the parameter's name alone: neither the order of reading nor the device changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from tv.checkpoints.vector import TuningVector
from tv.runtime.registry import Registry
from tv.runtime.seeds import seed_of

#: T of one parameter, or of one expert of it → what stands in for it.
_Draw: TypeAlias = Callable[[Tensor, Generator], Tensor]

#: Every control by name: (vector, seed) → what stands in for it. One more is a function in a file of this room.
CONTROLS: Registry[Callable[[TuningVector, int], TuningVector]] = Registry("control", "tv.arithmetic")


@CONTROLS.register("random")
def random_like(vector: TuningVector, seed: int) -> TuningVector:
    """A random direction of T's norm in every parameter: Gaussian entries, rescaled."""
    return _control(vector, "random", _random, seed)


@CONTROLS.register("shuffled")
def shuffled_like(vector: TuningVector, seed: int) -> TuningVector:
    """T's own entries in a random order within every parameter: its norm and its magnitudes, none of its structure."""
    return _control(vector, "shuffled", _shuffled, seed)


@CONTROLS.register("spectrum")
def spectrum_matched(vector: TuningVector, seed: int) -> TuningVector:
    """T's singular values between random singular vectors (Haar), matrix by matrix; the rest as `random_like`.

    The rotation null of SSA, drawn. A singular value decomposition a matrix each time it is read: save the vector where
    it is needed often.
    """
    return _control(vector, "spectrum", _rotated, seed)


def control(vector: TuningVector, kind: str, seed: int) -> TuningVector:
    """One of CONTROLS by its name. Raises InputError for another."""
    return CONTROLS.one(kind)(vector, seed)


def _control(vector: TuningVector, kind: str, draw: _Draw, seed: int) -> TuningVector:
    def drawn(delta: Tensor, name: str, index: int) -> Tensor:
        value = delta.to("cpu", torch.float32)
        if not value.any():
            return value
        return draw(value, _generator(f"{kind} {seed} {name} {index}")).to(delta.device)

    def read_expert(name: str, index: int) -> Tensor:
        return drawn(vector.expert(name, index), name, index)

    def read(name: str) -> Tensor:
        shape = vector.shapes[name]
        if len(shape) > 2:  # a fused tensor: every expert keeps its own size
            return torch.stack([read_expert(name, index) for index in range(shape[0])])
        return drawn(vector[name], name, -1)

    provenance = {"control": kind, "seed": seed, "control_of": vector.provenance}
    if vector.base is not None:
        provenance["base"] = vector.base
    return TuningVector(vector.shapes, read, provenance, read_expert)


def _random(delta: Float[Tensor, "..."], generator: Generator) -> Float[Tensor, "..."]:
    noise = torch.randn(delta.shape, generator=generator)
    return noise * (_norm(delta) / _norm(noise))


def _shuffled(delta: Float[Tensor, "..."], generator: Generator) -> Float[Tensor, "..."]:
    return delta.flatten()[torch.randperm(delta.numel(), generator=generator)].reshape(delta.shape)


def _rotated(delta: Float[Tensor, "..."], generator: Generator) -> Float[Tensor, "..."]:
    if delta.ndim < 2 or min(delta.shape) < 2:
        return _random(delta, generator)
    matrix = delta.reshape(delta.shape[0], -1)
    values = torch.linalg.svdvals(matrix)
    left, right = (_haar(size, len(values), generator) for size in matrix.shape)
    return ((left * values) @ right.T).reshape(delta.shape)


def _haar(size: int, columns: int, generator: Generator) -> Float[Tensor, "size columns"]:
    """Random orthonormal columns; the signs of R's diagonal make QR's choice uniform (arXiv math-ph/0609050)."""
    q, r = torch.linalg.qr(torch.randn(size, columns, generator=generator))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def _generator(key: str) -> Generator:
    return Generator().manual_seed(seed_of(key))


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value, dtype=torch.float64))
