"""The base's decompositions on disk: a second tuned model of the same base, and the ledger, reuse them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.checkpoint import Checkpoint
from tv.errors import InputError
from tv.measures.decomposition import Decomposition, decompose
from tv.runtime.atomic import replacing

Decompose = Callable[[str, Tensor], Decomposition]
_PIECE = 256  # of the long side, taken to float64 at a time


def decomposer(base: Checkpoint, module: Module, directory: Path | None) -> AbstractContextManager[Decompose]:
    """How the parts of a base's module are decomposed, by their names: its heads by number, itself as "-1".

    They come from the cache in `directory`, where there is one.
    """
    if directory is None:
        return afresh(module)
    if module.tied:  # one matrix under two names
        module = next(m for m in base.architecture.modules if m.parameter == module.parameter and not m.tied)
    held = DecompositionCache(directory, base.fingerprint()["content"])
    return held.module(f"{module.layer}-{module.name}-{module.expert}")


def afresh(module: Module) -> AbstractContextManager[Decompose]:
    """The same where nothing is kept."""
    return nullcontext(lambda part, weight: decompose(weight))


class DecompositionCache:
    """A folder of decompositions under `directory`, one for each base: `key` is the base's fingerprint.

    A file holds a module with its heads, float64: 8·d² bytes a matrix, about 1 GiB for a model of 0.5 B parameters.
    Missing or damaged decompositions, and those of other weights, are computed and written again. Raises InputError
    where the directory cannot be made or written.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self.folder = directory / key
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be created: {error.strerror}; choose another cache") from error

    @contextmanager
    def module(self, name: str) -> Iterator[Decompose]:
        """`decompose(part, weight)` for the parts of one module; new decompositions are written when the block ends."""
        path = self.folder / f"{name}.safetensors"
        held, fresh = _read(path), {}

        def cached(part: str, weight: Float[Tensor, "m n"]) -> Decomposition:
            sigma, near = held.get(f"{part}.sigma"), held.get(f"{part}.near")
            if sigma is not None and near is not None:
                decomposition = Decomposition(weight, sigma.to(weight.device), near.to(weight.device))
                if _fits(decomposition):
                    return decomposition
            decomposition = decompose(weight)
            fresh.update(
                {f"{part}.sigma": decomposition.sigma.cpu(), f"{part}.near": decomposition.near.cpu().contiguous()}
            )
            return decomposition

        yield cached
        if fresh:
            with replacing(path, InputError) as temporary:
                temporary.write_bytes(
                    save({**held, **fresh})
                )  # a full disk is an OSError here, and none of safetensors' own


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def _fits(decomposition: Decomposition) -> bool:
    """Whether it is of this weight: ‖WᵀQz‖ = ‖Σz‖ for a random z, as the fingerprint samples only W's ends."""
    r = min(decomposition.weight.shape)
    if (decomposition.sigma.shape, decomposition.near.shape) != ((r,), (r, r)):
        return False
    if {decomposition.sigma.dtype, decomposition.near.dtype} != {torch.float64}:
        return False
    w = decomposition.weight if decomposition.wide else decomposition.weight.T
    z = torch.randn(r, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(w.device)
    turned, expected = decomposition.near @ z, float((decomposition.sigma * z).norm())
    seen = math.sqrt(sum(float((turned @ piece.double()).pow(2).sum()) for piece in w.split(_PIECE, dim=1)))
    return abs(seen - expected) <= 1e-9 * expected
