"""Control vectors: what a tuning vector would do if its size, its entries or its spectrum were all there is to it.

Each is lazy like the vector it replaces, and is drawn parameter by parameter (of a fused tensor, expert by expert)
from the seed and the parameter's name alone: neither the order of reading nor the device changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from tv.runtime.registry import Registry
from tv.runtime.seeds import seed_of

if TYPE_CHECKING:  # a suite is checked by the names of controls alone, before torch is there
    from jaxtyping import Float
    from torch import Generator, Tensor

    from tv.checkpoints.vector import TuningVector

#: T of one parameter, or of one expert of it, and its generator → its replacement.
Draw: TypeAlias = "Callable[[Tensor, Generator], Tensor]"

#: The controls by name.
CONTROLS: Registry[Draw] = Registry("control", "tv.arithmetic", by="control_vector")


def control(vector: TuningVector, kind: str, seed: int) -> TuningVector:
    """A control vector, by its name.

    Args:
        vector: T, which it replaces. Its dtype and its rounding are kept.
        kind: One of `tv.CONTROLS`.
        seed: Of everything drawn.

    Returns:
        A vector that draws a parameter each time it is read: save it where it is needed often.

    Raises:
        InputError: Another name.

    Examples:
        >>> import torch
        >>> ones = tv.TuningVector({"w": (2, 2)}, lambda name: torch.ones(2, 2), {})
        >>> tv.control(ones, "shuffled", seed=0)["w"].tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    import torch

    from tv.checkpoints.vector import TuningVector

    draw = CONTROLS.one(kind)

    def drawn(delta: Tensor, name: str, index: int) -> Tensor:
        value = delta.to("cpu", torch.float32)
        if not value.count_nonzero():  # `any` takes twice as long
            return value
        return draw(value, _generator(f"{kind} {seed} {name} {index}")).to(delta.device)

    def read_expert(name: str, index: int) -> Tensor:
        return drawn(vector.expert(name, index), name, index)

    def read(name: str) -> Tensor:
        shape = vector.shapes[name]
        if len(shape) > 2:  # a fused tensor: every expert keeps its own size
            return torch.stack([read_expert(name, index) for index in range(shape[0])])
        return drawn(vector[name], name, -1)

    return TuningVector(vector.shapes, read, vector.provenance.control(kind, seed), read_expert)


def control_vector(name: str) -> Callable[[Draw], Draw]:
    """A decorator: the function draws the control of this name, parameter by parameter.

    Args:
        name: What suites, `--control` and `tv.control` call it.

    Returns:
        A decorator that leaves the function as it is. The function takes T of one parameter (float32, on the CPU, not
        all zero) and a generator, and returns a tensor of the same shape.

    Examples:
        >>> "shuffled" in CONTROLS
        True
    """
    return CONTROLS.register(name)


@control_vector("random")
def random(delta: Float[Tensor, "..."], generator: Generator) -> Float[Tensor, "..."]:
    """A random direction of T's norm in every parameter: Gaussian entries, rescaled."""
    import torch

    noise = torch.randn(delta.shape, generator=generator)
    return noise.mul_(_norm(delta) / _norm(noise))


@control_vector("shuffled")
def shuffled(delta: Float[Tensor, "..."], generator: Generator) -> Float[Tensor, "..."]:
    """T's entries in a random order within every parameter: its norm and its magnitudes, none of its structure."""
    import torch

    short = torch.int32 if delta.numel() <= torch.iinfo(torch.int32).max else torch.int64  # the same order, sooner
    order = torch.randperm(delta.numel(), generator=generator, dtype=short)
    return delta.flatten().index_select(0, order).reshape(delta.shape)


@control_vector("spectrum")
def spectrum(delta: Float[Tensor, "..."], generator: Generator) -> Float[Tensor, "..."]:
    """T's singular values between random singular vectors (Haar), matrix by matrix; the rest as `random`.

    The rotation null of SSA, drawn. It takes a singular value decomposition of each matrix.
    """
    import torch

    if delta.ndim < 2 or min(delta.shape) < 2:
        return random(delta, generator)
    matrix = delta.reshape(delta.shape[0], -1)
    values = torch.linalg.svdvals(matrix)
    left, right = (_haar(size, len(values), generator) for size in matrix.shape)
    return ((left * values) @ right.T).reshape(delta.shape)


def _haar(size: int, columns: int, generator: Generator) -> Float[Tensor, "size columns"]:
    """Random orthonormal columns; the signs of R's diagonal make QR's choice uniform (arXiv math-ph/0609050)."""
    import torch

    q, r = torch.linalg.qr(torch.randn(size, columns, generator=generator))
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def _generator(key: str) -> Generator:
    from torch import Generator

    return Generator().manual_seed(seed_of(key))


def _norm(value: Tensor) -> float:
    import torch

    rows = torch.linalg.vector_norm(value, dim=-1, dtype=torch.float64)  # of all at once it takes three times as long
    return float(torch.linalg.vector_norm(rows))
