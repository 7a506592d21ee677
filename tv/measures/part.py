"""A part of the model that is measured: a module, one head's slice of it, a bias, or another parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.noise import Noise
from tv.checkpoints.pairing import WeightPair, without_bounds
from tv.measures.cache import Decompose, decomposer
from tv.measures.decomposition import Decomposition, Energies, energies_along


@dataclass(frozen=True)
class Part:
    """W and T of one part, and what is computed from them once, on first use."""

    pair: WeightPair
    of: Module  # the module that it is, or belongs to
    module: str  # its name in tables
    head: int  # −1: of no single head
    kind: str  # of `Module.kind`, or "bias"
    weight: Float[Tensor, "..."]  # W, float32, (out, in) where it is a matrix
    delta: Float[Tensor, "..."]  # T of the same shape
    dtype: str  # the tuned side's stored dtype, in safetensors' words
    noise: Noise  # the rounding in T
    decompose: Decompose  # of the module's parts, by head
    seed: int = 0  # of everything drawn
    device: str = "cpu"
    cache: Path | None = None  # where decompositions are kept

    @property
    def where(self) -> dict[str, Any]:
        """The columns that say what a row is about; a bias of an expert is not measured apart."""
        return {"layer": self.of.layer, "module": self.module, "head": self.head, "expert": self.of.expert}

    @property
    def is_matrix(self) -> bool:
        """Whether it has singular directions: a gain, a bias and a parameter that is no module have none."""
        return self.weight.ndim == 2 and self.kind != "vector"

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its module."""
        return self.head < 0

    @property
    def in_block(self) -> bool:
        """Whether it is a matrix of attention or of an MLP."""
        return self.is_matrix and self.of.kind == "linear" and self.of.component not in ("embed", "unembed")

    @cached_property
    def decomposition(self) -> Decomposition:
        """The singular values and directions of W, a matrix."""
        return self.decompose(str(self.head), self.weight)

    @cached_property
    def energies(self) -> Energies:
        """How T's energy lies along W's directions."""
        return energies_along(self.decomposition, self.delta)

    @cached_property
    def in_other_layer(self) -> tuple[Decomposition, Energies] | None:
        """T along the basis of another layer: the next with this module in this shape; after the last layer, the first.

        None for a head, and where no other layer has one.
        """
        if not (self.is_whole and self.in_block):
            return None
        name, expert, shape = self.of.name, self.of.expert, self.of.shape
        alike = [m for m in self.pair.modules if (m.name, m.expert, m.shape) == (name, expert, shape)]
        other = alike[(alike.index(self.of) + 1) % len(alike)]
        if other is self.of:
            return None
        with decomposer(self.pair.base, other, self.cache) as decompose_other:
            decomposition = decompose_other("-1", self.pair.weight(other).to(self.device))
        return decomposition, energies_along(decomposition, self.delta)


def parts_of(
    pair: WeightPair,
    module: Module,
    *,
    heads: bool = True,
    seed: int = 0,
    device: str = "cpu",
    cache: Path | None = None,
) -> Iterator[Part]:
    """A module, then its heads where `heads`, then its bias; another parameter alone."""
    weight, delta = pair.weight(module), pair.delta(module)
    if module.kind == "vector":
        weight, delta = _flat(without_bounds(weight)), _flat(delta)
    weight, delta = weight.to(device), delta.to(device)
    dtype, noise = pair.dtype(module), pair.noise(module.parameter)
    with decomposer(pair.base, module, cache) as decompose_part:

        def part(head: int, w: Tensor, t: Tensor) -> Part:
            return Part(
                *(pair, module, module.name, head, module.kind, w, t),
                *(dtype, noise, decompose_part, seed, device, cache),
            )

        yield part(-1, weight, delta)
        if heads and module.kind == "linear":
            for head, (w, t) in enumerate(zip(module.heads(weight), module.heads(delta), strict=True)):
                yield part(head, w, t)
        if (bias := _bias(pair, module, decompose_part)) is not None:
            yield bias


def _flat(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Another parameter with all dimensions after the first as one (a kernel), a scalar as one entry."""
    return tensor.flatten(1) if tensor.ndim > 2 else torch.atleast_1d(tensor)


def _bias(pair: WeightPair, module: Module, decompose_part: Decompose) -> Part | None:
    """A module's bias (or a layer norm's). An expert's is left out: one tensor holds those of all experts."""
    name = f"{module.path}.bias"
    if name not in pair.base.names or module.expert >= 0 or module.kind == "vector":
        return None
    bias, delta = (
        module.outputs(tensor, dim=0).float() for tensor in (pair.base.tensor(name), pair.tuned.delta(name, pair.base))
    )
    return Part(
        pair=pair,
        of=module,
        module=f"{module.name}_bias",
        head=-1,
        kind="bias",
        weight=bias[: len(delta)],
        delta=delta,
        dtype=pair.tuned.info(name).dtype,
        noise=pair.noise(name),
        decompose=decompose_part,
    )
