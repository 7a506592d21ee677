"""A checkpoint with its neurons and heads in another order: rows and columns are permuted as they are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.noise import Noise
from tv.checkpoints.parameters import Place, Tensors


@dataclass(frozen=True)
class _Order:
    """How one dimension of a stored tensor (or of one expert of it) is permuted, and scaled entry by entry."""

    dim: int
    index: Int[Tensor, " n"]
    scale: Float[Tensor, " n"]

    def apply(self, stored: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The permuted tensor: in its dtype where nothing is scaled, otherwise at least in float32."""
        value = stored.index_select(self.dim, self.index)
        if bool((self.scale == 1).all()):
            return value
        shape = [-1 if i == self.dim else 1 for i in range(value.ndim)]
        return value.to(torch.promote_types(value.dtype, torch.float32)) * self.scale.reshape(shape)

    def sample(self) -> bytes:
        return self.index.numpy().tobytes() + self.scale.numpy().tobytes()


class Reordering:
    """The orders in which a checkpoint's tensors are to be read, module by module; fused modules keep their slices."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._orders: dict[tuple[str, int], _Order] = {}

    def outputs(
        self, module: Module, permutation: Int[Tensor, " rows"], scale: Float[Tensor, " rows"] | None = None
    ) -> None:
        """Row i of the module's matrix (and bias) becomes `scale[i]` × its row `permutation[i]`."""
        self._add(module.parameter, module, 1 if module.transposed else 0, permutation, scale, module.ranges)
        bias = f"{module.path}.bias"
        if bias in self._checkpoint.names and bias != module.parameter and module.expert < 0:
            self._add(bias, module, 0, permutation, scale, module.ranges)

    def inputs(
        self, module: Module, permutation: Int[Tensor, " cols"], scale: Float[Tensor, " cols"] | None = None
    ) -> None:
        """Column i of the module's matrix becomes `scale[i]` × its column `permutation[i]`; not of a fused slice."""
        self._add(module.parameter, module, 0 if module.transposed else 1, permutation, scale, ())

    def checkpoint(self) -> Checkpoint:
        """The reordered checkpoint; the original where nothing is to be reordered."""
        checkpoint = self._checkpoint
        if not self._orders:
            return checkpoint
        tensors = ReorderedTensors(checkpoint, self._orders)
        return Checkpoint(
            f"{checkpoint.source} (matched)", checkpoint.path, checkpoint.config, checkpoint.architecture, tensors
        )

    def _add(
        self,
        name: str,
        module: Module,
        dim: int,
        permutation: Int[Tensor, " n"],
        scale: Float[Tensor, " n"] | None,
        ranges: tuple[tuple[int, int], ...],
    ) -> None:
        shape = self._checkpoint.info(name).shape
        size = (shape[1:] if module.expert >= 0 else shape)[dim]
        places = torch.cat([torch.arange(*pair) for pair in ranges]) if ranges else torch.arange(size)
        before = self._orders.get((name, module.expert), _Order(dim, torch.arange(size), torch.ones(size)))
        index, factor = before.index.clone(), before.scale.clone()
        index[places] = places[permutation]
        if scale is not None:
            factor[places] = scale
        self._orders[name, module.expert] = _Order(dim, index, factor)


class ReorderedTensors(Tensors):
    """The parameters of `checkpoint`, each reordered when it is read; see `Reordering`."""

    def __init__(self, checkpoint: Checkpoint, orders: dict[tuple[str, int], _Order]) -> None:
        self._checkpoint, self._orders = checkpoint, orders
        self.infos = {name: checkpoint.info(name) for name in checkpoint.names}
        self.converted = checkpoint.converted
        self.notes = checkpoint.notes
        self._experts = {name: self.infos[name].shape[0] for name, expert in orders if expert >= 0}

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        if name not in self._experts:
            stored = self._checkpoint.read(name, expert)
            return self._orders[name, -1].apply(stored) if (name, -1) in self._orders else stored
        if expert < 0:
            return torch.stack([self.read(name, i) for i in range(self._experts[name])])
        stored = self._checkpoint.read(name, expert)
        return self._orders[name, expert].apply(stored) if (name, expert) in self._orders else stored

    def places(self) -> list[Place]:
        return self._checkpoint.places

    def buffers(self) -> dict[str, Tensor]:
        return self._checkpoint.buffers

    def sample(self, name: str) -> bytes:
        orders = (
            order
            for (parameter, _), order in sorted(self._orders.items(), key=lambda item: item[0])
            if parameter == name
        )
        return self._checkpoint.sample(name) + b"".join(order.sample() for order in orders)

    def noise(self, name: str) -> Noise:
        return self._checkpoint.noise(name)
