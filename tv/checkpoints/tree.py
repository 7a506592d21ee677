"""What reading weights needs of a model's class, as data: names, shapes, ties, and which stored tensor is what."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tv.checkpoints.layout import Files, Read
from tv.checkpoints.parameters import DTYPES

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

UNKNOWN = "unknown"


@dataclass
class Tree:
    """The module tree of a model, without the model."""

    kind: str  # the class
    dtype: str  # that the configuration says the weights are stored in
    parameters: dict[str, tuple[int, ...]]  # name → shape, a tied one once
    buffers: dict[str, tuple[int, ...]]  # those that training can change
    state: list[str]  # all that a state dict has
    aliases: dict[str, list[str]]  # a parameter's names, itself first
    ends: list[str]  # the weights of embedding and unembedding
    tied: bool  # whether these are one
    turned: list[str]  # weights with inputs before outputs
    ignored: list[str]  # patterns of stored names that the class does not use
    layouts: dict[str, dict[str, Files]] = field(default_factory=dict)  # by the digest of stored names
    model: Callable[[], PreTrainedModel] | None = field(default=None, compare=False, repr=False)

    def sort(self, stored: Iterable[str]) -> dict[str, Files]:
        """The stored names by the parameter that they make up, as `ModelNames.sort` gives them."""
        names = list(stored)
        digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
        if digest not in self.layouts:
            self.layouts[digest] = self._names().sort(names)
        found = self.layouts[digest]
        for name, files in found.items():
            if files.form and files.convert is None:
                files.convert = partial(self._convert, names, name)
        return found

    def untied(self) -> Tree:
        """The same with an unembedding of its own, with its model."""
        from tv.checkpoints.ties import untied

        return tree_of(untied(self.get_model()))

    def to_json(self) -> dict[str, Any]:
        """As plain values that JSON holds."""
        rows = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("layouts", "model")}
        layouts = {
            digest: {name: [of.keys, of.grid, of.stacked, of.form] for name, of in files.items()}
            for digest, files in self.layouts.items()
        }
        return {**rows, "layouts": layouts}

    @classmethod
    def from_json(cls, rows: dict[str, Any], model: Callable[[], PreTrainedModel]) -> Tree:
        """What `to_json` was called on. `model` makes the model where its class is needed after all."""
        shapes = {name: {key: tuple(shape) for key, shape in rows[name].items()} for name in ("parameters", "buffers")}
        layouts = {
            digest: {name: Files(*row) for name, row in files.items()} for digest, files in rows["layouts"].items()
        }
        return cls(**rows | shapes | {"layouts": layouts, "model": model})

    def _convert(self, stored: list[str], name: str, read: Read) -> Mapping[str, Tensor]:
        """What transformers makes of the tensors of one parameter: its class is imported now."""
        made = self._names().sort(stored)[name].convert
        assert made is not None
        return made(read)

    def _names(self) -> Any:
        from tv.checkpoints.transformers_names import ModelNames

        return ModelNames(self.get_model())

    def get_model(self) -> PreTrainedModel:
        """The model itself: its class is imported now, where it has not been before."""
        assert self.model is not None
        return self.model()


def tree_of(model: PreTrainedModel) -> Tree:
    """The tree of a model, live or a skeleton.

    Examples:
        >>> from tv.architecture.resolve import skeleton
        >>> tree = tree_of(skeleton(tv.open_checkpoint("data/models/base").config))
        >>> tree.kind, tree.tied
        ('LlamaForCausalLM', False)
    """
    from tv.architecture.trunk import ends_of
    from tv.architecture.values import values_of
    from tv.checkpoints.ties import is_tied, other_names
    from tv.runtime.transformers_private import ignored_keys

    parameters = {name: tuple(value.shape) for name, value in model.named_parameters()}
    ends, modules = ends_of(model), dict(model.named_modules())
    return Tree(
        kind=type(model).__name__,
        dtype=_dtype(model.config),
        parameters=parameters,
        buffers={name: tuple(value.shape) for name, value in values_of(model).items() if name not in parameters},
        state=list(model.state_dict()),
        aliases=other_names(model),
        ends=[f"{path}.weight" for path, module in modules.items() if module in ends],
        tied=is_tied(model),
        turned=[f"{path}.weight" for path, module in modules.items() if type(module).__name__ == "Conv1D"],
        ignored=list(ignored_keys(model)),
        model=partial(_itself, model),
    )


def _itself(model: PreTrainedModel) -> PreTrainedModel:
    return model


def _dtype(config: PretrainedConfig) -> str:
    for part in (config, config.get_text_config()):
        dtype = getattr(part, "dtype", None)
        if isinstance(dtype, torch.dtype):
            return DTYPES.get(dtype, str(dtype))
    return UNKNOWN
