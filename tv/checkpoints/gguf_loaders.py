"""How transformers turns the tensors of a GGUF file into parameters, for single parameters.

Each way names the parameter that a tensor is loaded into, and makes a parameter from its tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
            turned = self._processor.process(
                weights=dequantize(data, tensor.tensor_type),
                name=tensor.name,
                tensor_key_mapping=self._names,
                parsed_parameters={"tensors": made},
            )
            if turned.name is not None:  # otherwise the processor has put it in its place
                made[target] = torch.from_numpy(np.copy(turned.weights))
        return made[target]


class Converted:
    """Renamings and converters of the architecture, as for safetensors, the first of which dequantises."""

    def __init__(self, file: Path, architecture: str, model: PreTrainedModel) -> None:
        header = private.GgufHeader.from_file(str(file))
        changes = private.get_gguf_conversion_mapping(architecture, model.config)
        quantised, _, _ = private.get_gguf_plan(header, changes)
        changes = private.add_gguf_load_ops(changes, quantised, header, torch.float32)
        renamings = [change for change in changes if isinstance(change, private.WeightRenaming)]
        converters = [change for change in changes if isinstance(change, private.WeightConverter)]
        self._config, self._stored = model.config, private.load_gguf_state_dict(header)
        self._by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        prefix, state = model.base_model_prefix, model.state_dict()
        self._names = {
            key: private.rename_source_key(key, renamings, converters, prefix, state) for key in self._stored
        }

    def target(self, name: str) -> str | None:
        return self._names[name][0]

    def made(self, target: str, tensors: Sequence[Any], expert: int) -> Float[Tensor, "..."]:
        converter = copy.deepcopy(self._by_pattern[self._names[tensors[0].name][1]])
        for tensor in tensors:
            stored = self._stored[tensor.name]
            if expert >= 0:
                data = stored.data.reshape(stored.shape[0], -1)[expert]
                stored = type(stored)(data, stored.ggml_type, (1, *stored.shape[1:]))
            converter.add_tensor(target, target, self._names[tensor.name][1], partial(stored.__getitem__, ...))
        value: Tensor = converter.convert(target, config=self._config)[target]
        return value
