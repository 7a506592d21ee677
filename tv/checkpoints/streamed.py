"""A live model that is larger than memory: its weights are read as they are used, one block at a time.

The model is of its usual class, with its parameters on the meta device. When a block is called its parameters are read
from the checkpoint, and those of the block before it go; embedding and unembedding come and go the same way, unless
blocks are so much smaller that they can stay for the next sweep. What is computed is what the model in memory
computes: the same values in the same modules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tv.architecture.classes import built
from tv.architecture.values import values_of
from tv.checkpoints.casting import cast
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.quickened import quickened
from tv.checkpoints.ties import is_tied, untie
from tv.checkpoints.transformers_names import ModelNames
from tv.errors import CheckpointError
from tv.runtime.transformers_private import kept_in_float32, make_buffers

#: A part outside the blocks that is smaller than this share of the largest part stays, once it was read.
_SMALL = 0.1
#: Of a part there may be so many at once: both models' own, and what stands in for one of them.
_COPIES = 3


def streamed(checkpoint: Checkpoint, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """The model of a checkpoint, its weights to be read as they are used.

    Args:
        checkpoint: Of files (with an adapter or a tuning vector over them, if need be), with known blocks.
        dtype: That it computes in.
        device: Where it computes.

    Returns:
        A model in evaluation mode, of its usual class. `in_memory` reads the weights of a module that is not called.

    Raises:
        CheckpointError: It lacks a parameter of the model.

    Examples:
        >>> model = streamed(tv.open_checkpoint("data/models/base"), torch.float32)
        >>> model.lm_head.weight.is_meta, in_memory(model.lm_head).weight.is_meta
        (True, False)
    """
    with torch.device("meta"):
        model = built(checkpoint.config, dtype=dtype)
    model.config.name_or_path = str(checkpoint.source)
    if is_tied(model) and not checkpoint.architecture.tied:
        untie(model)
    make_buffers(model, torch.device(device))
    names = ModelNames(model)
    saved = {names.of(key)[0]: buffer for key, buffer in checkpoint.buffers.items()}
    saved |= {name: checkpoint.tensor(name) for name in checkpoint.beside if name in checkpoint.values}
    model.load_state_dict(saved, strict=False)
    weights = Weights(quickened(model).eval(), checkpoint, torch.device(device))
    # The class's own `device` is that of the first parameter, which is not in memory most of the time.
    cls = type(model)
    model.__class__ = type(cls.__name__, (cls,), {"device": property(lambda _: weights.device), "weights": weights})
    return model


def is_streamed(model: nn.Module) -> bool:
    """Whether the weights of a model are read as they are used."""
    return isinstance(getattr(model, "weights", None), Weights)


def in_memory(module: nn.Module) -> nn.Module:
    """The module itself; of a streamed model, with its weights in memory until another part of the model is used."""
    weights: Weights | None = module.__dict__.get("read_by")
    if weights is not None:
        weights.enter(module)
    return module


def stored_values(model: PreTrainedModel) -> Mapping[str, Tensor]:
    """`values_of` a model; of a streamed one each value is read when it is asked for, with the part that it is in.

    What stands in for a parameter meanwhile (`Weights.standing_in`) is not among them.
    """
    return _Stored(model) if is_streamed(model) else values_of(model)


class _Stored(Mapping[str, Tensor]):
    def __init__(self, model: PreTrainedModel) -> None:
        self._weights: Weights = model.weights
        # Of a parameter the name alone: what is in memory now would stay there.
        self._kept = {name: None if name in self._weights else value for name, value in values_of(model).items()}

    def __getitem__(self, name: str) -> Tensor:
        value = self._kept[name]
        return self._weights.stored(name) if value is None else value

    def __contains__(self, name: object) -> bool:
        return name in self._kept  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


class Weights:
    """Which parameters of a streamed model are in memory."""

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint, device: torch.device) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.reads = 0  # bytes in the model's dtype that were read so far
        self._dtype = model.dtype
        self._then: tuple[torch.dtype, ...] = ()  # what a parameter is rounded to once it is read
        self._spared: set[str] = set()  # parameters that are not
        self._empty: dict[str, nn.Parameter] = dict(model.named_parameters())
        missing = next((name for name in self._empty if name not in checkpoint.reader.infos), None)
        if missing is not None:
            raise CheckpointError(f"{checkpoint.source}: tensor {missing!r} is missing; the checkpoint is incomplete")
        self._dtypes = _dtypes(model, checkpoint)
        self._homes: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in self._empty}
        self._held: set[str] = set()
        self._checked: set[str] = set()
        self._inside: nn.Module | None = None  # the block that runs
        self._others: Mapping[str, Tensor] = {}  # what stands in for parameters
        self._aside: dict[str, nn.Parameter] = {}  # those of them that are in memory
        self._take: Callable[[str, Tensor], None] | None = None  # what a gradient is given to
        self._parts = self._divided(model, [block.path for block in checkpoint.architecture.blocks])
        single = {name for name, value in self._empty.items() if value.numel() == 1}
        outside = {name for part, names in self._parts.items() if part not in self._blocks for name in names}
        self._small = single | {name for name in outside if self._empty[name].nbytes < _SMALL * self.largest}
        # What both models have outside the blocks stays where, beside a block, it takes no more than the largest part.
        block = max((self._size(self._parts[block]) for block in self._blocks), default=0)
        fits = 2 * self._size(outside) + _COPIES * block <= _COPIES * self.largest
        self._staying = self._small | (outside if fits else set())
        self._read(single)  # which may be factors of the stream: what asks for one does not ask for its block

    def __contains__(self, name: str) -> bool:
        """Whether it is a parameter that is read as it is used."""
        return name in self._empty

    @property
    def largest(self) -> int:
        """Bytes of the largest part, a block or a matrix outside them."""
        return max(map(self._size, self._parts.values()))

    def rounded(self, *dtypes: torch.dtype) -> PreTrainedModel:
        """Another streamed model of the same checkpoint, rounded to each of these dtypes in turn."""
        model = streamed(self.checkpoint, self._dtype, str(self.device))
        weights = model.weights
        for dtype in dtypes:
            cast(model, dtype)
            if dtype != torch.float32:
                weights._spared |= {name for name, value in weights._empty.items() if value.dtype == torch.float32}
        weights._then = dtypes
        return model

    def enter(self, module: nn.Module) -> None:
        """Read what a module needs, unless it is there. Other parts go first, unless a block is running."""
        names = self._parts.get(module) or self._parts.get(self._block_of.get(module, module), frozenset())
        if self._inside is None and not names <= self._small:
            self.leave(names)
        self._read(names - self._held)

    def leave(self, needed: frozenset[str] = frozenset()) -> None:
        """Let parameters go that are not needed, save what stays; and what stands in for that."""
        for name in (self._held | self._aside.keys()) - needed - self._small:
            if name not in self._staying:
                self._aside.pop(name, None)
            elif name not in self._others:
                continue
            self._put(name, self._empty[name])
            self._held.discard(name)

    def rest(self) -> None:
        """Let go of what stays, too: the model is not needed for a while."""
        for name in self._held - self._small:
            self._put(name, self._empty[name])
            self._held.discard(name)

    @contextmanager
    def standing_in(self, others: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values of some parameters while this lasts, each asked for where its parameter is needed."""
        self._others = others
        self._aside = {name: self._parameter(name) for name in others.keys() & self._held}
        self._held -= self._aside.keys()
        try:
            self._read(self._aside.keys() & self._small)
            yield
        finally:
            for name in others.keys() & self._empty.keys():
                self._put(name, self._aside.get(name, self._empty[name]))
                (self._held.add if name in self._aside else self._held.discard)(name)
            self._others, self._aside = {}, {}

    @contextmanager
    def giving_gradients(self, take: Callable[[str, Tensor], None]) -> Iterator[None]:
        """While this lasts every parameter that is read gives its gradient, by name, and keeps none.

        `take` is called once for each pass backwards through a parameter. It may have left memory by then.
        """
        wanted = {name: value.requires_grad for name, value in self._empty.items()}
        self._take = take
        try:
            for value in self._empty.values():
                value.requires_grad_(value.is_floating_point())
            self._read(set(self._held))
            yield
        finally:
            self._take = None
            for name, value in self._empty.items():
                value.requires_grad_(wanted[name])
            self._read(set(self._held))

    def freeze(self) -> None:
        """From now on no parameter requires a gradient. Not from the start: some kernels are chosen by that."""
        for parameter in (*self._empty.values(), *map(self._parameter, self._held)):
            parameter.requires_grad_(False)

    def stored(self, name: str) -> Tensor:
        """A parameter as the checkpoint has it. It stays in memory until another part of the model is used."""
        if name in self._others:
            if name not in self._aside:
                self._aside[name] = self._from_checkpoint(name)
            return self._aside[name]
        if name not in self._held:
            self.enter(self._homes[name][0][0])
        return self._parameter(name)

    def _read(self, names: Collection[str]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for name in sorted(names):
                if name in self._others:
                    parameter = nn.Parameter(self._others[name], requires_grad=self._empty[name].requires_grad)
                else:
                    parameter = self._from_checkpoint(name)
                self._put(name, parameter)
                self._held.add(name)

    def _from_checkpoint(self, name: str) -> nn.Parameter:
        with torch.inference_mode(False), torch.no_grad():
            value = self._value(name)
        self.reads += value.nbytes
        parameter = nn.Parameter(value, requires_grad=self._empty[name].requires_grad)
        take = self._take
        if take is not None and parameter.requires_grad:

            def given(own: Tensor) -> None:
                assert own.grad is not None
                take(name, own.grad)
                own.grad = None

            parameter.register_post_accumulate_grad_hook(given)
        return parameter

    def _value(self, name: str) -> Tensor:
        """A parameter in the model's dtype, checked to be finite the first time.

        It stays in the mapped file where it is stored so, as in a model that transformers loads: short products depend
        on how a matrix lies in memory, in their last bit.
        """
        stored = self.checkpoint.reader.read(name) if name in self._checked else self.checkpoint.tensor(name)
        self._checked.add(name)
        value = stored.to(self.device, self._dtypes[name])
        for dtype in () if name in self._spared else self._then:
            value = value.to(dtype)
        return value

    def _parameter(self, name: str) -> nn.Parameter:
        owner, leaf = self._homes[name][0]
        parameter = owner._parameters[leaf]
        assert parameter is not None
        return parameter

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        for owner, leaf in self._homes[name]:
            owner._parameters[leaf] = parameter

    def _size(self, names: Collection[str]) -> int:
        return sum(self._empty[name].nbytes for name in names)

    def _divided(self, model: nn.Module, blocks: list[str]) -> dict[nn.Module, frozenset[str]]:
        """The parameters of every block, and of every module outside that has some itself; hooks that read them."""
        first = {id(value): name for name, value in self._empty.items()}
        self._blocks = {model.get_submodule(path) for path in blocks}
        self._block_of: dict[nn.Module, nn.Module] = {}
        parts: dict[nn.Module, frozenset[str]] = {}
        for block in self._blocks:
            self._block_of |= dict.fromkeys(block.modules(), block)
        for module in model.modules():
            for leaf, value in module._parameters.items():
                if value is not None:
                    self._homes[first[id(value)]].append((module, leaf))
            if module in self._block_of and module not in self._blocks:
                module.__dict__["read_by"] = self
                continue
            own = module.named_parameters(remove_duplicate=False, recurse=module in self._blocks)
            names = frozenset(first[id(value)] for _, value in own)
            if names:
                parts[module] = names
                module.__dict__["read_by"] = self
                module.register_forward_pre_hook(self._entered(module in self._blocks))
                if module in self._blocks:
                    module.register_forward_hook(self._left, always_call=True)
        return parts

    def _entered(self, block: bool) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any) -> None:
            if "forward" in module.__dict__:  # replaced by what needs no weights: a block that is skipped
                return
            if block:
                self._inside = None
            self.enter(module)
            if block:
                self._inside = module

        return hook

    def _left(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._inside = None


def _dtypes(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, torch.dtype]:
    """What each parameter is read as; transformers keeps some of some classes in float32."""
    dtypes = {name: value.dtype for name, value in model.named_parameters()}
    if (checkpoint.base or checkpoint).native:
        is_kept = kept_in_float32(model)
        dtypes |= {name: torch.float32 for name in dtypes if is_kept(name)}
    return dtypes
