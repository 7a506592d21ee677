"""The parameters of a model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.parameters import DTYPES, FLOATS, TensorInfo, Tensors
from tv.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LiveTensors(Tensors):
    """The parameters of a model in memory. Raises CheckpointError where one is not in memory."""

    def __init__(self, source: str, model: PreTrainedModel) -> None:
        infos: dict[str, TensorInfo] = {}
        self._parameters = dict(model.named_parameters())
        others = model.state_dict().keys() - dict(model.named_parameters(remove_duplicate=False)).keys()
        buffers = {name: model.get_buffer(name).cpu() for name in sorted(others)}
        self._beside = {name: value for name, value in buffers.items() if value.dtype in DTYPES}
        self._buffers = {name: value for name, value in buffers.items() if name not in self._beside}
        self.beside = {
            name: TensorInfo(name, tuple(value.shape), DTYPES[value.dtype]) for name, value in self._beside.items()
        }
        for name, value in self._parameters.items():
            if value.is_meta:
                raise CheckpointError(f"{source}: parameter {name!r} is not in memory (offloaded?); pass its directory")
            dtype = DTYPES.get(value.dtype, str(value.dtype))
            if dtype not in FLOATS:
                raise CheckpointError(
                    f"{source}: parameter {name!r} is quantised, as {dtype}; load the model in bfloat16 or float32"
                )
            infos[name] = TensorInfo(name, tuple(value.shape), dtype)
        self.infos = infos

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        value = self._value(name)
        return (value if expert < 0 else value[expert]).cpu()

    def sample(self, name: str) -> bytes:
        flat = self._value(name).contiguous().flatten()
        return torch.cat([flat[:1024], flat[-1024:]]).float().cpu().numpy().tobytes()

    def buffers(self) -> dict[str, Tensor]:
        return self._buffers

    def _value(self, name: str) -> Tensor:
        return self._beside[name] if name in self._beside else self._parameters[name].detach()
