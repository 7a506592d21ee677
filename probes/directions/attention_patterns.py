"""Attention patterns as a model's own code makes them: what goes into the softmax of every head, and what comes out.

Both models run side by side. Where both have run an attention module, each one's module runs once more on what the
other one's has read: four patterns of every head, of either model's weights on either model's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import softmax
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from probes.capture.hooks.plan import Read, Seen, Site
from probes.capture.hooks.torch_backend import lockstep
from probes.capture.pair import Pair
from probes.errors import RunError
from tv.architecture.anatomy import Architecture, Writer
from tv.checkpoints.streamed import is_streamed
from tv.prompts.encoding import Batch

_SOFTMAX = (softmax, torch.softmax, Tensor.softmax)
#: A score at or below this part of the least number of its dtype is that of a key that the mask hides.
_HIDDEN = 0.5


@dataclass(frozen=True)
class Pattern:
    """The heads of one attention module on a batch. Where a head may attend to nothing (a sink), that is the last key.

    Scores are what enters the softmax: with scale, position, soft cap and mask.
    """

    scores: Float[Tensor, "batch head query key"]
    weights: Float[Tensor, "batch head query key"]  # they sum to 1 over keys

    @property
    def visible(self) -> Bool[Tensor, "batch head query key"]:
        """The keys that the mask lets each query see."""
        return self.scores > _HIDDEN * torch.finfo(self.scores.dtype).min


@dataclass(frozen=True)
class Patterns:
    """One attention module of both models: the weights of either, on the input of either."""

    layer: int
    component: str
    base: Pattern  # the base's weights on the base's input, as in its forward pass
    own: Pattern  # the tuned model's weights on the base's input
    inherited: Pattern  # the base's weights on the tuned model's input
    tuned: Pattern
    error: float  # the largest difference of a weight where the base's module runs again on its own input


def attention_writers(architecture: Architecture) -> dict[str, tuple[int, Writer]]:
    """By path, the layer and the writer of every attention module; mixers of other kinds have no pattern."""
    return {
        writer.path: (block.layer, writer)
        for block in architecture.blocks
        for writer in block.writers
        if writer.component.startswith("attn")
    }


def require_patterns(pair: Pair) -> None:
    """Raise RunError, before any pass, where patterns cannot be read."""
    if not attention_writers(pair.architecture):
        kinds = ", ".join(pair.architecture.components)
        raise RunError(f"attention: {pair.architecture.name} has no attention ({kinds}), so there are no patterns")
    if is_streamed(pair.base) or is_streamed(pair.tuned):
        raise RunError(
            "attention: patterns need both models whole in memory, and these are read a layer at a time; use a machine "
            "with more memory, or --dtype bfloat16"
        )


def each_pattern(pair: Pair, batch: Batch, receive: Callable[[Patterns], None]) -> list[str]:
    """Both models on a batch, and `receive` called at every attention module.

    Args:
        pair: Both models, in memory.
        batch: Prompts of any lengths.
        receive: Takes the patterns of a module. They are not kept, so only one module's are in memory.

    Returns:
        Paths of modules that made no pattern that could be read.
    """
    missing: list[str] = []
    places = attention_writers(pair.architecture)
    reads = [Read(path, (Site("attn_out", layer, component="attn"),)) for path, (layer, _) in places.items()]
    with _recording(pair.base, places) as base, _recording(pair.tuned, places) as tuned:

        def reduce(read: Read, _base: Seen, _tuned: Seen) -> None:
            here, there = base.modules[read.path], tuned.modules[read.path]
            first, last = here.pattern(), there.pattern()
            if first is None or last is None:
                missing.append(read.path)
                return
            again, own, inherited = here.on(here), there.on(here), here.on(there)
            assert again is not None and own is not None and inherited is not None
            layer, writer = places[read.path]
            error = float((again.weights - first.weights).abs().max())
            receive(Patterns(layer, writer.component, first, own, inherited, last, error))
            here.forget()
            there.forget()

        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        lockstep(pair.base, pair.tuned, reads, inputs, reduce)
    return missing


class _Softmaxes(TorchFunctionMode):
    """What every softmax takes and gives while this lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        if func in _SOFTMAX:
            self.calls.append((args[0] if args else (kwargs or {})["input"], given))
        return given


@dataclass
class _Module:
    """One attention module of one model, and its last call."""

    run: Callable[..., Any]
    device: torch.device
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs = args, kwargs
        with _Softmaxes() as seen:
            output = self.run(*args, **kwargs)
        self.calls = seen.calls
        return output

    @property
    def hidden(self) -> Tensor:
        """What the module read."""
        value: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return value

    def on(self, other: _Module) -> Pattern | None:
        """The pattern of this module on what another one has read."""
        hidden = other.hidden.to(self.device, self.hidden.dtype)
        with _Softmaxes() as seen:
            if self.args:
                self.run(hidden, *self.args[1:], **self.kwargs)
            else:
                self.run(**{**self.kwargs, "hidden_states": hidden})
        return _pattern(seen.calls, self.hidden.shape)

    def pattern(self) -> Pattern | None:
        """The pattern of the last call; None where it made none, or several."""
        return _pattern(self.calls, self.hidden.shape)

    def forget(self) -> None:
        """Let the tensors of the last call go."""
        self.args, self.kwargs, self.calls = (), {}, []


def _pattern(calls: Sequence[tuple[Tensor, Tensor]], shape: Sequence[int]) -> Pattern | None:
    batch, length = shape[0], shape[1]
    found = []
    for scores, weights in calls:
        if weights.ndim == 3 and len(weights) % batch == 0:  # heads and prompts on one axis
            scores, weights = (value.unflatten(0, (batch, -1)) for value in (scores, weights))
        plain = weights.ndim == 4 and weights.shape[0] == batch and weights.shape[2] == length
        if plain and weights.shape[3] in (length, length + 1):  # with a sink
            found.append(Pattern(scores.detach(), weights.detach()))
    return found[0] if len(found) == 1 else None


@dataclass
class _Recorded:
    modules: dict[str, _Module]


@contextmanager
def _recording(model: PreTrainedModel, paths: Mapping[str, object]) -> Iterator[_Recorded]:
    """The attention modules of a model note their calls, and make their patterns in the open, while this lasts."""
    with ExitStack() as undo:
        undo.enter_context(_eager(model))
        modules = {}
        for path in paths:
            owner = model.get_submodule(path)
            kept = owner.__dict__.get("forward")
            modules[path] = _Module(owner.forward, model.device)
            owner.forward = modules[path]
            undo.callback(_put_back, owner, kept)
        yield _Recorded(modules)


def _put_back(owner: nn.Module, kept: Any) -> None:
    if kept is None:
        del owner.forward
    else:
        owner.forward = kept


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Attention by plain products and a softmax: no other implementation makes a pattern that could be seen."""
    configs = {id(own): own for own in (getattr(module, "config", None) for module in model.modules()) if own}
    kept = [(own, getattr(own, "_attn_implementation", None)) for own in configs.values()]
    try:
        for own, _ in kept:
            own._attn_implementation = "eager"
        yield
    finally:
        for own, before in kept:
            own._attn_implementation = before
