"""Lazy named tensors of a checkpoint, wherever they come from, and the way to open each kind of source.

A tensor is read when it is asked for. Nothing is unpickled and no remote code runs.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from tv.adapter import AdapterTensors, adapter_base
from tv.architecture import Architecture, Module, resolve, skeleton
from tv.errors import CheckpointError, InputError, first_line
from tv.gguf import GgufTensors, gguf_config, gguf_file
from tv.location import hub_id, kind_of, locate
from tv.moved import MovedTensors
from tv.noise import Noise
from tv.parameters import FileTensors, LiveTensors, Place, TensorInfo, Tensors
from tv.tensors import difference, stored_tensors
from tv.vector import TuningVector, VectorTensors

_PIECE = 2**20  # entries whose sum is taken in float64 at a time


class Checkpoint:
    """One model's weights by name, none of them read yet."""

    def __init__(
        self, source: str, path: Path | None, config: PretrainedConfig, architecture: Architecture, tensors: Tensors
    ) -> None:
        self.source, self.path, self.config, self.architecture = source, path, config, architecture
        self._tensors = tensors
        self._fingerprint: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}, {len(self.names)} tensors)"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model's parameters, as the live model has them."""
        return tuple(self._tensors.infos)

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Parameters that are stored in a form which cannot be read here, and why. They are in no `names`."""
        return self._tensors.unreadable

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of its tensors, a line each."""
        return self._tensors.notes

    @property
    def base(self) -> Checkpoint | None:
        """The base under an adapter or a tuning vector; None where the checkpoint is a model of its own."""
        return self._tensors.base if isinstance(self._tensors, MovedTensors) else None

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of the parameters that an adapter or a tuning vector moves; of a model of its own, all."""
        return tuple(self._tensors.moved) if isinstance(self._tensors, MovedTensors) else self.names

    @property
    def places(self) -> list[Place]:
        """The tensors of its files and which parameter each holds, for whoever writes such files."""
        return self._tensors.places()

    @property
    def buffers(self) -> dict[str, Tensor]:
        """What its files hold beside parameters, by name in the files, as stored."""
        return self._tensors.buffers()

    @property
    def dtype(self) -> str:
        """The stored dtype of most parameters."""
        sizes: dict[str, int] = {}
        for info in self._tensors.infos.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + math.prod(info.shape)
        return max(sizes, key=lambda dtype: sizes[dtype])

    def info(self, name: str) -> TensorInfo:
        """Shape and stored dtype of `name`. Raises CheckpointError where there is no such tensor."""
        if name in self.unreadable:
            raise CheckpointError(
                f"{self.source}: tensor {name!r} cannot be read: {self.unreadable[name]}; load the model with "
                "transformers and pass it live"
            )
        if name not in self._tensors.infos:
            raise CheckpointError(f"{self.source}: tensor {name!r} is missing; the checkpoint is incomplete")
        return self._tensors.infos[name]

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        """A parameter as stored, or one expert of it alone, on the CPU.

        Float8 is dequantised. Raises CheckpointError where it is missing, damaged, or not finite.
        """
        self.info(name)
        return self._finite(name, self._tensors.read(name, expert))

    def tensor(self, name: str) -> Float[Tensor, "..."]:
        """A whole parameter, as `read` reads it."""
        return self.read(name)

    def matrix(self, module: Module) -> Float[Tensor, "rows cols"]:
        """A module's matrix (or gain), float32, (out, in)."""
        return module.matrix(self.read(module.parameter, module.expert)).float()

    def bias(self, module: Module) -> Float[Tensor, " rows"] | None:
        """A module's bias, float32, or None where it has none."""
        name = f"{module.path}.bias"
        return module.outputs(self.tensor(name), dim=0).float() if name in self._tensors.infos else None

    def delta(self, name: str, base: Checkpoint, expert: int = -1) -> Float[Tensor, "..."]:
        """T of a parameter against `base`, as stored, float32; of a grown vocabulary the rows in common.

        Of an adapter or a tuning vector over this base, T itself: no float32 difference of large numbers.
        """
        return self._moved(name, base, expert, lambda stored: stored)

    def delta_matrix(self, module: Module, base: Checkpoint) -> Float[Tensor, "rows cols"]:
        """T of a module, (out, in); see `delta`."""
        return self._moved(module.parameter, base, module.expert, module.matrix)

    def noise(self, name: str) -> Noise:
        """What rounding a parameter carries."""
        self.info(name)
        return self._tensors.noise(name)

    def sample(self, name: str) -> bytes:
        """A fixed sample of the bytes that make up a parameter."""
        return self._tensors.sample(name)

    def fingerprint(self) -> dict[str, Any]:
        """A hash of names, shapes and dtypes, and one of a fixed sample of bytes: the ends of every stored tensor."""
        if not self._fingerprint:
            structure, content = hashlib.sha256(), hashlib.sha256()
            for name, info in sorted(self._tensors.infos.items()):
                structure.update(f"{name} {info.shape} {info.dtype}\n".encode())
                content.update(self._tensors.sample(name))
            self._fingerprint = {
                "structure": structure.hexdigest(),
                "content": content.hexdigest(),
                "tensors": len(self.names),
                "parameters": sum(math.prod(info.shape) for info in self._tensors.infos.values()),
                "dtype": self.dtype,
            }
        return dict(self._fingerprint)

    def _moved(
        self, name: str, base: Checkpoint, expert: int, view: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "..."]:
        self.info(name)
        own = self._tensors
        if isinstance(own, MovedTensors) and (own.base is base or own.base.fingerprint() == base.fingerprint()):
            return view(self._finite(name, own.delta(name, expert)))
        return difference(view(self.read(name, expert)), view(base.read(name, expert)))

    def _finite(self, name: str, value: Tensor) -> Tensor:
        for piece in value.flatten().split(_PIECE):
            if not bool(torch.isfinite(piece.double().sum())) and not bool(torch.isfinite(piece.double()).all()):
                where = (~torch.isfinite(value.double())).nonzero()[0].tolist()
                raise CheckpointError(
                    f"{self.source}: tensor {name!r} holds NaN or Inf, first at {where}; "
                    "the checkpoint is damaged or its training diverged"
                )
        return value


Source: TypeAlias = str | Path | PreTrainedModel | Checkpoint | TuningVector


def open_checkpoint(source: Source, revision: str | None = None, *, base: Source | None = None) -> Checkpoint:
    """Open a source, reading headers only.

    A source is a local Hugging Face directory, a hub id (`org/name`, at `revision` or as `org/name@revision`), a live
    model, a .gguf file, a LoRA adapter's directory, or a tuning vector (a file of `tv extract`, or one in memory). The
    last two are opened over `base`; without one, over the base that they name.

    Raises CheckpointError in one line: nothing there, no config, no safetensors, a missing or truncated shard, tensors
    that the config does not describe, weights that are quantised otherwise than in float8 or GGUF.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, PreTrainedModel):
        name = str(source.config._name_or_path or type(source).__name__)
        return Checkpoint(name, None, source.config, resolve(source), LiveTensors(name, source))
    if isinstance(source, TuningVector):
        return _open_vector("tuning vector", source, base)
    path = locate(source, revision)
    if revision and not Path(source).expanduser().exists():
        source = f"{hub_id(str(source))[0]}@{revision}"
    kind = kind_of(path)
    if kind == "vector":
        return _open_vector(str(source), TuningVector.load(path), base)
    if kind == "adapter":
        under = open_checkpoint(base) if base is not None else open_checkpoint(*adapter_base(path))
        return _over(str(source), path, AdapterTensors(path, under))
    if kind == "gguf":
        file = gguf_file(path)
        config = gguf_config(file)
        model, architecture = _tree(config, file)
        return Checkpoint(str(source), None, config, architecture, GgufTensors(file, model))
    config, quantisation = _config(path)
    stored = stored_tensors(path)
    layers = config.get_text_config().num_hidden_layers
    if isinstance(layers, int) and layers > len(stored):  # before a tree of so many is built
        raise CheckpointError(f"{path}: its config speaks of {layers:,} layers, and it stores {len(stored):,} tensors")
    model, architecture = _tree(config, path / "config.json")
    return Checkpoint(str(source), path, config, architecture, FileTensors(str(source), stored, model, quantisation))


def _open_vector(source: str, vector: TuningVector, base: Source | None) -> Checkpoint:
    if base is None:
        named = vector.base
        if named is None:
            raise CheckpointError(f"{source}: a tuning vector that names no base; pass the base")
        base = str(named.get("source"))
    return _over(source, None, VectorTensors(source, vector, open_checkpoint(base)))


def _over(source: str, path: Path | None, tensors: MovedTensors) -> Checkpoint:
    """The base as an adapter or a tuning vector moves it. Without a tokenizer of its own it has the base's."""
    base = tensors.base
    rows = tensors.infos[f"{base.architecture.embed}.weight"].shape[0]
    config = copy.deepcopy(base.config)
    config.get_text_config().vocab_size = rows
    own = path if path is not None and (path / "tokenizer.json").is_file() else base.path
    return Checkpoint(source, own, config, replace(base.architecture, vocab_size=rows), tensors)


def _tree(config: PretrainedConfig, file: Path) -> tuple[PreTrainedModel, Architecture]:
    try:
        model = skeleton(config)
        return model, resolve(model)
    except InputError:
        raise
    except Exception as error:  # whatever transformers makes of numbers that describe no model
        raise CheckpointError(f"{file}: describes no model: {first_line(error)}") from error


def _config(path: Path) -> tuple[PretrainedConfig, Mapping[str, Any]]:
    """A model's configuration without its quantisation, and what it says of that."""
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json; pass a Hugging Face model directory")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        quantisation = getattr(config, "quantization_config", None)
        if quantisation is None:
            return config, {}
        del config.quantization_config
        return config, dict(quantisation if isinstance(quantisation, Mapping) else quantisation.to_dict())
    except StrictDataclassError as error:  # it names the field on its first line, and what is wrong on the next
        raise CheckpointError(f"{path / 'config.json'}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / 'config.json'}: cannot be read: {first_line(error)}") from error
