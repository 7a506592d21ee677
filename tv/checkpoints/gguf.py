"""A GGUF file as a checkpoint: the values of transformers' loader, one parameter at a time.

Opening reads the file's header. A read dequantises the tensors of one parameter, or of one expert of it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tv.checkpoints.gguf_loaders import Loader, architecture_of, loader_of
from tv.checkpoints.noise import PLAIN, coarsest, rounding_note
from tv.checkpoints.parameters import TensorInfo, Tensors
from tv.checkpoints.tensors import sample_of
from tv.errors import CheckpointError, first_line
from tv.runtime.memory import RELIEF, require_memory

#: Model types whose embeddings transformers takes for tied, whatever the file holds.
_SAID_TO_BE_TIED = ("bloom", "falcon")


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
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        if config.model_type in _SAID_TO_BE_TIED:
            config.tie_word_embeddings = all(tensor.name != "output.weight" for tensor in _reader(file).tensors)
        return config


def load_gguf(file: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a GGUF file, dequantised. Raises CheckpointError where transformers cannot load it whole."""
    config = gguf_config(file)
    with _loading(file):
        architecture_of(_reader(file))
        model, info = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, config=config, dtype=dtype, output_loading_info=True
        )
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{file}: transformers' loader finds no tensor for {len(missing)} parameters ({missing[0]!r} first) and "
            "would leave them random; convert the file to safetensors with a program that knows the architecture"
        )
    loaded: PreTrainedModel = model
    return loaded


def plain(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy that can be saved: a model out of a GGUF file cannot, as its settings say that it is quantised."""
    settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    copied: PreTrainedModel = type(model)(type(model.config).from_dict(settings)).to(dtype)
    copied.load_state_dict(model.state_dict())
    copied.config.dtype = dtype
    return copied


class GgufTensors(Tensors):
    """The parameters of `model` (a skeleton) from a GGUF file. Raises CheckpointError where it cannot be read."""

    def __init__(self, file: Path, model: PreTrainedModel) -> None:
        self._file = file
        with _loading(file):
            self._loader, stored, self._mapped = _opened(file, model)
            if not stored:
                raise ValueError("it holds no tensors")
        dtypes: dict[str, int] = {}
        for tensor in stored:
            dtypes[tensor.tensor_type.name] = dtypes.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
        main = max(dtypes, key=lambda dtype: dtypes[dtype])
        self._sources: dict[str, list[Any]] = {name: [] for name in model.state_dict()}
        left_out: list[Any] = []
        for tensor in stored:
            self._sources.get(self._loader.target(tensor.name) or "", left_out).append(tensor)
        self.infos = {
            name: self._info(name, tuple(parameter.shape))
            for name, parameter in model.named_parameters()
            if self._sources[name]
        }
        self.notes = tuple(_notes(file, main, [tensor.name for tensor in left_out]))

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        with _loading(self._file):
            value = self._loader.made(name, self._sources[name], expert)
        if isinstance(self._mapped, mmap.mmap):  # what was read of the file would count as this process's memory
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return value if expert < 0 else value[0]

    def rows(self, name: str, indices: Sequence[int]) -> Float[Tensor, "n ..."]:
        tensors, ndim = self._sources[name], len(self.infos[name].shape)
        if ndim == 3 and all(tensor.data.ndim == 3 for tensor in tensors):  # a stack of experts
            return torch.stack([self.read(name, index) for index in indices])
        if ndim == 2 and len(tensors) == 1 and tensors[0].data.ndim == 2:
            with _loading(self._file):
                rows = self._loader.rows(name, tensors[0], indices)
            if rows is not None:
                return rows
        return super().rows(name, indices)

    def sample(self, name: str) -> bytes:
        ends = [(int(tensor.data_offset), int(tensor.n_bytes)) for tensor in self._sources[name]]
        return b"".join(sample_of(self._file, start, start + size) for start, size in ends)

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        tensors = self._sources[name]
        size = sum(int(tensor.n_elements) for tensor in tensors)
        if size != math.prod(shape):
            raise CheckpointError(
                f"{self._file}: tensor {tensors[0].name!r} holds {size:,} numbers, but the header's settings say "
                f"{list(shape)}; the two do not belong together"
            )
        return TensorInfo(name, shape, coarsest(tensor.tensor_type.name for tensor in tensors))


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file)


def _opened(file: Path, model: PreTrainedModel) -> tuple[Loader, list[Any], Any]:
    """How transformers loads the file; the tensors that its header declares, their data still on the disk; its map."""
    reader = _reader(file)
    return loader_of(reader, file, model), list(reader.tensors), reader.data.base


def _notes(file: Path, main: str, left_out: list[str]) -> Iterator[str]:
    if main not in PLAIN:
        yield rounding_note(file, main)
    if left_out:
        effect = "; without those of the rotary embedding the model computes something else than the file says"
        yield (
            f"{file}: transformers' loader leaves out {len(left_out)} of its tensors ({left_out[0]!r} first), and so "
            "does this program" + effect * any(name.startswith("rope_") for name in left_out)
        )


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
        require_memory(error, f"{file}: reading it", RELIEF)
        raise CheckpointError(
            f"{file}: cannot be read as GGUF: {first_line(error)}; download it again, or convert it to safetensors"
        ) from error
