"""A GGUF file as a checkpoint, through transformers' loader.

Opening reads the file's header. The first read dequantises all tensors, which stay in memory: the loader cannot read
a single one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tv.checkpoints.noise import PLAIN
from tv.checkpoints.parameters import TensorInfo, Tensors
from tv.checkpoints.tensors import sample_of
from tv.errors import CheckpointError, first_line
from tv.runtime.transformers_private import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map


def gguf_file(path: Path) -> Path:
    """The file itself, or the only .gguf of a directory. Raises CheckpointError where there are several."""
    if path.is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(f"{path}: holds {len(files)} .gguf files; pass one of them ({files[0].name}, …)")
    return files[0]


def gguf_config(file: Path) -> PretrainedConfig:
    """The configuration in a GGUF file's header. Raises CheckpointError where it cannot be read."""
    with _loading(file):
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def load_gguf(file: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a GGUF file, dequantised. Raises CheckpointError where transformers cannot load it."""
    with _loading(file):
        return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)


class GgufTensors(Tensors):
    """The parameters of `model` (a skeleton) from a GGUF file. Raises CheckpointError where it cannot be read."""

    def __init__(self, file: Path, model: PreTrainedModel) -> None:
        self._file = file
        with _loading(file):
            stored = _stored(file)
            names = _names(file, model)
            if not stored:
                raise ValueError("it holds no tensors")
        dtypes: dict[str, int] = {}
        for entry in stored.values():
            dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + entry.stop - entry.start
        main = max(dtypes, key=lambda dtype: dtypes[dtype])
        self._stored = {names[name]: entry for name, entry in stored.items() if name in names}
        whole = _Stored(main, min(e.start for e in stored.values()), max(e.stop for e in stored.values()))
        infos: dict[str, TensorInfo] = {}
        for name, parameter in model.named_parameters():
            entry = self._stored.setdefault(name, whole)  # the loader maps more names than it lists: fused experts
            infos[name] = TensorInfo(name, tuple(parameter.shape), entry.dtype)
        self.infos = infos
        if main not in PLAIN:
            self.notes = (f"{file}: quantised, mostly as {main}: its rounding is part of T (see noise_share)",)

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        value = self._model[name].detach()
        return value if expert < 0 else value[expert]

    def sample(self, name: str) -> bytes:
        return sample_of(self._file, self._stored[name].start, self._stored[name].stop)

    @cached_property
    def _model(self) -> dict[str, torch.nn.Parameter]:
        return dict(load_gguf(self._file).named_parameters())


@dataclass(frozen=True)
class _Stored:
    dtype: str
    start: int
    stop: int


def _stored(file: Path) -> dict[str, _Stored]:
    """The tensors that the header declares, by their names in the file."""
    from gguf import GGUFReader

    return {
        tensor.name: _Stored(tensor.tensor_type.name, int(tensor.data_offset), int(tensor.data_offset + tensor.n_bytes))
        for tensor in GGUFReader(file).tensors
    }


def _names(file: Path, model: PreTrainedModel) -> dict[str, str]:
    """Name in the file → parameter."""
    architecture = model.config.model_type
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    return get_gguf_hf_weights_map(model, processor)


@contextlib.contextmanager
def _loading(file: Path) -> Iterator[None]:
    """Turn errors of transformers and the gguf package into one line about the file."""
    try:
        yield
    except ImportError as error:
        raise CheckpointError(
            f"{file}: reading GGUF needs the gguf package: pip install 'tuning-probes[gguf]'"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged header can make the two packages raise anything
        raise CheckpointError(f"{file}: cannot be read as GGUF: {first_line(error)}; download it again") from error
