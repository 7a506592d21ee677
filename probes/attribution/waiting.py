"""Hidden states that wait for the next block: in memory up to a bound, beyond it in files that are mapped."""

from __future__ import annotations

from mmap import mmap
from tempfile import TemporaryFile

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tv.checkpoints.streamed import is_streamed

#: Bytes that wait in memory; of a streamed model more, where its largest part has more, and so many in files.
IN_MEMORY = 2**27
FILED = 2**33
#: Bytes of a file, unless a single tensor is larger.
_FILE = 2**26


class Waiting:
    """Where tensors wait that belong together, such as those between two blocks; each goes as it is let go."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.bound = max(IN_MEMORY, model.weights.largest) if is_streamed(model) else None
        self.held = 0
        self._room = torch.empty(0)

    def put(self, value: Tensor) -> Tensor:
        """The same values. Of a model that is in memory, the tensor itself."""
        if self.bound is None or self.held + value.nbytes <= self.bound or value.device.type != "cpu":
            self.held += value.nbytes
            return value
        if len(self._room) < value.numel() or self._room.dtype != value.dtype:
            self._room = _mapped(max(value.nbytes, _FILE), value.dtype)
        room, self._room = self._room[: value.numel()], self._room[value.numel() :]
        return room.view_as(value).copy_(value)


def _mapped(n_bytes: int, dtype: torch.dtype) -> Tensor:
    """A tensor in a file, which goes with it."""
    with TemporaryFile() as file:
        file.truncate(n_bytes)
        return torch.frombuffer(mmap(file.fileno(), n_bytes), dtype=dtype)
