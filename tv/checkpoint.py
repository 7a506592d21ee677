"""Lazy named tensors of a checkpoint: a directory of safetensors, a hub id, or a live model.

A tensor is read when it is asked for, out of a memory-mapped file. Headers are checked when the checkpoint is opened,
so that a truncated shard is found before any work. Nothing is unpickled and no remote code runs.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from tv.architecture import Architecture, Module, resolve, skeleton
from tv.errors import CheckpointError, InputError, first_line

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_DOWNLOADED = ("*.safetensors", "*.json", "tokenizer*", "merges.txt", "*.jinja")
_LEFT = "*/*"  # copies of the weights in other formats lie in folders
_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
_FLOATS = frozenset(_DTYPES.values())
_SAMPLED_BYTES = 4096


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor."""

    name: str  # the parameter's name in the model
    shape: tuple[int, ...]
    dtype: str  # as stored, in safetensors' words: BF16, F16, F32, …
    file: Path | None  # None in a live model
    stored: str = ""  # its name in the file, where that is another
    start: int = 0  # first byte in the file
    stop: int = 0


class Checkpoint:
    """One model's weights by name, none of them read yet."""

    def __init__(
        self,
        source: str,
        path: Path | None,
        config: PretrainedConfig,
        architecture: Architecture,
        infos: Mapping[str, TensorInfo],
        live: PreTrainedModel | None = None,
    ) -> None:
        self.source, self.path, self.config, self.architecture = source, path, config, architecture
        self._infos = dict(infos)
        self._state: Mapping[str, Tensor] = dict(live.named_parameters()) if live is not None else {}

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}, {len(self._infos)} tensors)"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model's parameters, as the live model has them."""
        return tuple(self._infos)

    @property
    def dtype(self) -> str:
        """The stored dtype of most parameters."""
        sizes: dict[str, int] = {}
        for info in self._infos.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + _numel(info.shape)
        return max(sizes, key=lambda dtype: sizes[dtype])

    def info(self, name: str) -> TensorInfo:
        """What the header says of `name`. Raises CheckpointError where there is no such tensor."""
        if name not in self._infos:
            raise CheckpointError(f"{self.source}: tensor {name!r} is missing; the checkpoint is incomplete")
        return self._infos[name]

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU. Raises CheckpointError where it is missing, damaged, or not finite."""
        info = self.info(name)
        if info.file is None:
            value = self._state[name].detach().cpu()
        else:
            try:
                with safe_open(info.file, framework="pt") as file:
                    value = file.get_tensor(info.stored)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{info.file}: tensor {name!r} cannot be read: {first_line(error)}; download it again"
                ) from error
        if not bool(torch.isfinite(value.sum(dtype=torch.float64))):
            where = (~torch.isfinite(value)).nonzero()
            if len(where):
                raise CheckpointError(
                    f"{self.source}: tensor {name!r} holds NaN or Inf, first at {where[0].tolist()}; "
                    "the checkpoint is damaged or its training diverged"
                )
        return value

    def matrix(self, module: Module) -> Float[Tensor, "rows cols"]:
        """A module's matrix (or gain), float32, (out, in)."""
        return module.matrix(self.tensor(module.parameter)).float()

    def bias(self, module: Module) -> Float[Tensor, " rows"] | None:
        """A module's bias, float32, or None where it has none."""
        name = f"{module.path}.bias"
        return module.outputs(self.tensor(name), dim=0).float() if name in self._infos else None

    def fingerprint(self) -> dict[str, Any]:
        """A hash of names, shapes and dtypes, and one of a fixed sample of bytes: the ends of every tensor."""
        structure, content = hashlib.sha256(), hashlib.sha256()
        for name in sorted(self._infos):
            info = self._infos[name]
            structure.update(f"{name} {info.shape} {info.dtype}\n".encode())
            content.update(self._sample(info))
        return {
            "structure": structure.hexdigest(),
            "content": content.hexdigest(),
            "tensors": len(self._infos),
            "parameters": sum(_numel(info.shape) for info in self._infos.values()),
            "dtype": self.dtype,
        }

    def _sample(self, info: TensorInfo) -> bytes:
        if info.file is None:
            flat = self._state[info.name].detach().contiguous().flatten()
            ends = torch.cat([flat[:1024], flat[-1024:]])
            return ends.float().cpu().numpy().tobytes()
        with open(info.file, "rb") as file:
            file.seek(info.start)
            first = file.read(min(_SAMPLED_BYTES, info.stop - info.start))
            file.seek(max(info.start, info.stop - _SAMPLED_BYTES))
            return first + file.read(min(_SAMPLED_BYTES, info.stop - info.start))


Source: TypeAlias = str | Path | PreTrainedModel | Checkpoint


def open_checkpoint(source: Source, revision: str | None = None) -> Checkpoint:
    """Open a local Hugging Face directory, a hub id (at `revision`), or a live model, reading headers only.

    Raises CheckpointError in one line: no such directory, no config, no safetensors, a missing or truncated shard,
    tensors that the config does not describe, quantised weights.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, PreTrainedModel):
        return _open_live(source)
    path = _local(str(source), revision)
    config = _config(path)
    stored = _infos(path)
    try:
        model = skeleton(config)
        architecture = resolve(model)
    except InputError:
        raise
    except Exception as error:  # whatever transformers makes of numbers that describe no model
        raise CheckpointError(f"{path / 'config.json'}: describes no model: {first_line(error)}") from error
    infos = _by_model_name(stored, model)
    _require_weights(str(source), infos, model)
    return Checkpoint(str(source), path, config, architecture, infos)


def _open_live(model: PreTrainedModel) -> Checkpoint:
    name = str(model.config._name_or_path or type(model).__name__)
    infos = {}
    for parameter, value in model.named_parameters():
        if value.is_meta:
            raise CheckpointError(f"{name}: parameter {parameter!r} is not in memory (offloaded?); pass its directory")
        infos[parameter] = TensorInfo(parameter, tuple(value.shape), _DTYPES.get(value.dtype, str(value.dtype)), None)
    _require_weights(name, infos, model)
    return Checkpoint(name, None, model.config, resolve(model), infos, model)


def _require_weights(source: str, infos: Mapping[str, TensorInfo], model: PreTrainedModel) -> None:
    """Raise CheckpointError where the tensors are not plain weights of this model's shapes.

    Quantised numbers mean nothing without their scales, which lie in tensors that the model does not have.
    """
    quantised = getattr(model.config, "quantization_config", None) is not None
    advice = "dequantise the checkpoint and save it as bfloat16 or float32"
    for name, parameter in model.named_parameters():
        info = infos.get(name)
        if info is None:
            if quantised:
                raise CheckpointError(f"{source}: tensor {name!r} is stored quantised, in parts; {advice}")
            continue  # named when it is asked for
        if info.dtype not in _FLOATS and (quantised or not info.dtype.startswith("F8")):
            raise CheckpointError(f"{source}: tensor {name!r} is stored quantised, as {info.dtype}; {advice}")
        if info.shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{source}: tensor {name!r} has shape {list(info.shape)}, but config.json says "
                f"{list(parameter.shape)}; the two do not belong together"
            )


def _by_model_name(infos: Mapping[str, TensorInfo], model: PreTrainedModel) -> dict[str, TensorInfo]:
    """The infos under the names that transformers gives these tensors when it loads them.

    Older checkpoints lack the base model's prefix, or name a matrix otherwise. Buffers and tied copies are left out.
    """
    renamings = [change for change in get_model_conversion_mapping(model) if isinstance(change, WeightRenaming)]
    parameters, state, named = dict(model.named_parameters()), model.state_dict(), {}
    for stored, info in infos.items():
        name, _ = rename_source_key(stored, renamings, [], model.base_model_prefix, state)
        if name in parameters:
            named[name] = replace(info, name=name)
    return named


def _local(source: str, revision: str | None) -> Path:
    """The directory of a source: itself, or the snapshot of a hub id."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{source} is a file; pass the directory that holds config.json and the safetensors")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise CheckpointError(f"{source}: no such directory")
    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=list(_DOWNLOADED), ignore_patterns=_LEFT)
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{source}: no such directory, and it cannot be had from the hub ({first_line(error)}); check the name"
        ) from error


def _config(path: Path) -> PretrainedConfig:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: no config.json; pass a Hugging Face model directory")
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except StrictDataclassError as error:  # it names the field on its first line, and what is wrong on the next
        raise CheckpointError(f"{path / 'config.json'}: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path / 'config.json'}: cannot be read: {first_line(error)}") from error


def _infos(path: Path) -> dict[str, TensorInfo]:
    infos: dict[str, TensorInfo] = {}
    for shard in _shards(path):
        for info in _header(shard):
            if info.name in infos:
                raise CheckpointError(f"{shard}: tensor {info.name!r} is also in {infos[info.name].file}; remove one")
            infos[info.name] = info
    return infos


def _shards(path: Path) -> list[Path]:
    index = path / _INDEX
    if not index.is_file():
        if (path / _SINGLE).is_file():
            return [path / _SINGLE]
        pickled = any(path.glob("*.bin")) or any(path.glob("*.pt"))
        hint = "it holds pickled weights only; convert them" if pickled else f"{_SINGLE} is missing"
        raise CheckpointError(f"{path}: no safetensors: weights load from safetensors alone, and {hint}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not a valid index of shards: {first_line(error)}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} is not a plain file name in that directory")
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: this shard is missing; download it again")
    return [path / name for name in names]


def _header(file: Path) -> list[TensorInfo]:
    """The tensors a safetensors file declares. Raises CheckpointError where the file is not as long as it says."""
    size = file.stat().st_size
    try:
        with open(file, "rb") as handle:
            length = struct.unpack("<Q", handle.read(8))[0]
            if length > size - 8:
                raise ValueError("its header is cut off")
            entries = json.loads(handle.read(length))
        entries.pop("__metadata__", None)
        start = 8 + length
        infos = [
            TensorInfo(
                name, tuple(e["shape"]), e["dtype"], file, name, *(start + offset for offset in e["data_offsets"])
            )
            for name, e in entries.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file: {first_line(error)}") from error
    odd = next((info.name for info in infos if not start <= info.start <= info.stop), None)
    if odd is not None:
        raise CheckpointError(f"{file}: its header gives tensor {odd!r} an impossible place; download it again")
    end = max((info.stop for info in infos), default=start)
    if size < end:
        raise CheckpointError(f"{file}: truncated: {size:,} bytes of {end:,}; download it again")
    return infos


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
