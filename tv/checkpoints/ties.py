"""Parameters that a model has under several names, and the unembedding that is the embedding, or is not.

A configuration's `tie_word_embeddings` is what a model was made with; a checkpoint's tensors say what it is. Where both
matrices are stored and differ, they are two, as transformers loads them; peft's merge of an adapter that holds an
unembedding of its own makes such a checkpoint.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tv.architecture.trunk import ends_of
from tv.checkpoints.noise import Noise
from tv.checkpoints.parameters import Place, TensorInfo, Tensors
from tv.checkpoints.tensors import Readable, Stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tv.checkpoints.tree import Tree


def other_names(model: PreTrainedModel) -> dict[str, list[str]]:
    """Every parameter's names, itself first.

    Args:
        model: Live, or a skeleton.

    Returns:
        By the name that `named_parameters` lists: all that the parameter goes by.

    Examples:
        >>> from tv.architecture.resolve import skeleton
        >>> model = skeleton(tv.open_checkpoint("data/models/base").config)
        >>> other_names(model)["model.norm.weight"]
        ['model.norm.weight']
    """
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return {group[0]: group for group in names.values()}


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the unembedding of a model is its embedding."""
    weights = [getattr(end, "weight", None) for end in ends_of(model)]
    return weights[0] is not None and weights[0] is weights[1]


def are_apart(tree: Tree, stored: Mapping[str, Readable]) -> bool:
    """Whether the files of a tied model hold an unembedding and an embedding that differ: transformers unties it then.

    Args:
        tree: Of the model.
        stored: The tensors of its files by the model's names.
    """
    held = [stored[name] for name in tree.ends if name in stored] if tree.tied else []
    return len(held) == 2 and not _equal(*held)


def _equal(one: Readable, other: Readable) -> bool:
    if one.shape != other.shape or (one.dtype == other.dtype and one.sample() != other.sample()):
        return False
    if isinstance(one, Stored) and isinstance(other, Stored):
        return _equal_in_files(one, other, *(_identity(stored.file) for stored in (one, other)))
    return torch.equal(one.load().float(), other.load().float())


@lru_cache(maxsize=16)  # a run opens its checkpoints several times, and the matrices are the largest of all
def _equal_in_files(one: Stored, other: Stored, *_: tuple[int, ...]) -> bool:
    """`_equal` of files that are still the same by their identity."""
    return torch.equal(one.load().float(), other.load().float())


def _identity(file: Path) -> tuple[int, ...]:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def untie(model: PreTrainedModel) -> None:
    """Give a tied model an unembedding of its own, with the embedding's values, in place."""
    _, head = ends_of(model)
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    name = next(name for name, module in model.named_modules() if module is head) + ".weight"
    (model.all_tied_weights_keys or {}).pop(name, None)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def untied(model: PreTrainedModel) -> PreTrainedModel:
    """A model with an unembedding of its own: itself if it has one, or a copy that shares all other tensors.

    Args:
        model: A live model, or a skeleton. It stays as it is.

    Returns:
        A model that computes the same.
    """
    if not is_tied(model):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    other = copy.deepcopy(model, shared)
    untie(other)
    return other


class UntiedTensors(Tensors):
    """The parameters of a tied model, with an unembedding of its own that has the embedding's values."""

    def __init__(self, tensors: Tensors, embed: str, unembed: str, names: Iterable[str]) -> None:
        """`names` are the parameters of the untied model, in its order."""
        self._tensors, self._stored_as = tensors, {unembed: embed}
        self.notes, self.converted = tensors.notes, tensors.converted
        self.beside, self.outside = tensors.beside, tensors.outside
        self.base = None if tensors.base is None else tensors.base.untied()
        infos = {name: tensors.infos.get(self._stored_as.get(name, name)) for name in names}
        self.infos = {name: TensorInfo(name, info.shape, info.dtype) for name, info in infos.items() if info}

    def read(self, name: str, expert: int = -1) -> Tensor:
        return self._tensors.read(self._stored_as.get(name, name), expert)

    def sample(self, name: str) -> bytes:
        return self._tensors.sample(self._stored_as.get(name, name))

    @property
    def moved(self) -> list[str]:
        names = (*self.infos, *self.beside)
        return [name for name in names if self._stored_as.get(name, name) in self._tensors.moved]

    def delta(self, name: str, expert: int = -1) -> Tensor:
        return self._tensors.delta(self._stored_as.get(name, name), expert)

    def noise(self, name: str) -> Noise:
        return self._tensors.noise(self._stored_as.get(name, name))

    def places(self) -> list[Place]:
        (unembed, embed), *_ = self._stored_as.items()
        places = [Place(embed, embed) if place.key == unembed else place for place in self._tensors.places()]
        return [*places, Place(unembed, unembed)]

    def buffers(self) -> dict[str, Tensor]:
        return self._tensors.buffers()
