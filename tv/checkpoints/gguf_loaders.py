"""How transformers turns the tensors of a GGUF file into parameters, for single parameters.

Each way names the parameter that a tensor is loaded into, and makes a parameter from its tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tv.runtime import transformers_private as private


class Loader(Protocol):
    """One of transformers' ways to load a GGUF file."""

    def target(self, name: str) -> str | None:
        """The model's name for a tensor of the file; None where it is left out."""

    def made(self, target: str, tensors: Sequence[Any], expert: int) -> Float[Tensor, "..."]:
        """A parameter from the tensors of the file (gguf's `ReaderTensor`) that it is loaded from, float32.

        With `expert` ≥ 0 only that one, as the only one of its stack.
        """

    def rows(self, target: str, tensor: Any, indices: Sequence[int]) -> Float[Tensor, "n cols"] | None:
        """Rows of a parameter that one matrix of the file makes up; None where more is done than to reorder rows."""


def loader_of(reader: Any, file: Path, model: PreTrainedModel) -> Loader:
    """What transformers uses for the architecture of a file that gguf's `GGUFReader` has opened."""
    architecture = architecture_of(reader)
    if private.converts_gguf(architecture):
        return Converted(file, architecture, model)
    return Processed(architecture, model)


def architecture_of(reader: Any) -> str:
    """What the header names. Raises ValueError where transformers would load it with rows in another order."""
    field = reader.fields["general.architecture"]
    architecture = bytes(field.parts[field.data[0]]).decode()
    heads = f"{architecture}.attention.head_count_kv"
    if architecture == "llama" and heads not in reader.fields:
        raise ValueError(
            f"its header lacks {heads}, without which transformers takes the rows of q and k in a wrong order"
        )
    return architecture


class Processed:
    """One tensor at a time, dequantised by the gguf package and turned by its architecture's processor."""

    def __init__(self, architecture: str, model: PreTrainedModel) -> None:
        kind = private.TENSOR_PROCESSORS.get(architecture, private.TensorProcessor)
        self._processor = kind(config=model.config.to_dict())
        self._names = private.get_gguf_hf_weights_map(model, self._processor)

    def target(self, name: str) -> str | None:
        experts = getattr(self._processor, "GGUF_MOE_WEIGHTS_PATTERN", None)
        stack = experts.fullmatch(name) if experts else None
        key = stack["name"] if stack and "name" in stack.groupdict() else name
        return self._names.get(key)

    def made(self, target: str, tensors: Sequence[Any], expert: int) -> Float[Tensor, "..."]:
        from gguf import dequantize

        made: dict[str, Tensor] = {}
        for tensor in tensors:
            data = tensor.data[expert : expert + 1] if expert >= 0 else tensor.data
            self._turn(target, tensor.name, dequantize(data, tensor.tensor_type), made)
        return made[target]

    def rows(self, target: str, tensor: Any, indices: Sequence[int]) -> Float[Tensor, "n cols"] | None:
        from gguf import dequantize

        order = _order(lambda rows: self._turn(target, tensor.name, rows.numpy(), {})[target], len(tensor.data))
        if order is None:
            return None
        return torch.from_numpy(dequantize(tensor.data[order[list(indices)].numpy()], tensor.tensor_type))

    def _turn(self, target: str, name: str, value: np.ndarray, made: dict[str, Tensor]) -> dict[str, Tensor]:
        turned = self._processor.process(
            weights=value, name=name, tensor_key_mapping=self._names, parsed_parameters={"tensors": made}
        )
        if turned.name is not None:  # otherwise the processor has put it in its place
            made[target] = torch.from_numpy(np.copy(turned.weights))
        return made


class Converted:
    """Renamings and converters of the architecture, as for safetensors, the first of which dequantises."""

    def __init__(self, file: Path, architecture: str, model: PreTrainedModel) -> None:
        header = private.GgufHeader.from_file(str(file))
        changes = private.get_gguf_conversion_mapping(architecture, model.config)
        quantised, _, _ = private.get_gguf_plan(header, changes)
        changes = private.add_gguf_load_ops(changes, quantised, header, torch.float32)
        renamings = [change for change in changes if isinstance(change, private.WeightRenaming)]
        converters = [change for change in changes if isinstance(change, private.WeightConverter)]
        self._unpacks = bool(quantised)  # then the first step of every converter
        self._config, self._stored = model.config, private.load_gguf_state_dict(header)
        self._by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        prefix, state = model.base_model_prefix, model.state_dict()
        self._names = {
            key: private.rename_source_key(key, renamings, converters, prefix, state) for key in self._stored
        }

    def target(self, name: str) -> str | None:
        return self._names[name][0]

    def made(self, target: str, tensors: Sequence[Any], expert: int) -> Float[Tensor, "..."]:
        parts = {tensor.name: self._part(tensor.name, [expert] if expert >= 0 else None) for tensor in tensors}
        return self._turn(target, parts, slice(None))

    def rows(self, target: str, tensor: Any, indices: Sequence[int]) -> Float[Tensor, "n cols"] | None:
        turning = slice(int(self._unpacks), None)
        order = _order(lambda rows: self._turn(target, {tensor.name: lambda: rows}, turning), len(tensor.data))
        if order is None:
            return None
        part = self._part(tensor.name, order[list(indices)].tolist())
        unpacked = self._turn(target, {tensor.name: part}, slice(1)) if part().dtype == torch.uint8 else part()
        return unpacked.float()

    def _part(self, name: str, entries: list[int] | None) -> Callable[[], Tensor]:
        """What reads a tensor of the file, or these entries of its first dimension, as stored."""
        stored = self._stored[name]
        if entries is not None:
            data = stored.data.reshape(stored.shape[0], -1)[entries].reshape(-1)
            stored = type(stored)(data, stored.ggml_type, (len(entries), *stored.shape[1:]))
        return partial(stored.__getitem__, ...)

    def _turn(self, target: str, parts: Mapping[str, Callable[[], Tensor]], steps: slice) -> Tensor:
        """What some of the converter's steps make of tensors."""
        converter = copy.deepcopy(self._by_pattern[self._names[next(iter(parts))][1]])
        converter.operations = converter.operations[steps]
        for name, read in parts.items():
            converter.add_tensor(target, target, self._names[name][1], read)
        value: Tensor = converter.convert(target, config=self._config)[target]
        return value


def _order(turn: Callable[[Tensor], Tensor], n: int) -> Tensor | None:
    """Which of a matrix's `n` rows each row of its parameter is, seen by turning a column of their numbers.

    None where the result is no order of them: what turns the matrix moves columns too, or changes values.
    """
    numbers = torch.arange(n, dtype=torch.float32)[:, None]
    try:
        with np.errstate(all="ignore"):  # a logarithm, which this finds
            turned = turn(numbers)
    except (ValueError, RuntimeError, IndexError):  # it needs all columns
        return None
    return turned[:, 0].long() if torch.equal(turned.sort(dim=0).values, numbers) else None
