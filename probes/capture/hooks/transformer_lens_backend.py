"""TransformerLens as capture backend: the plan through the hook points of two `TransformerBridge`s.

A bridge replaces most of a model's modules with components that have hook points. A read of such a module is its
component's `hook_in` and `hook_out`; a fused matrix, which a bridge splits, is put together from its parts; and
modules without a component (activation functions, the experts of a mixture) are hooked directly, inside the bridge.
Weights are raw: compatibility mode, which folds the norms into them, is never turned on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.capture.hooks.plan import EXPERTS, Read, Seen
from probes.capture.hooks.shell import shell
from probes.capture.hooks.torch_backend import Inputs, Lockstep, Receive, ReducePair, capture, in_step, seen_of
from probes.errors import ActivationError
from tv.architecture.anatomy import Module
from tv.architecture.resolve import skeleton
from tv.errors import first_line

#: A bridge's names for the parts of a fused matrix, under the component that held it.
_PARTS = {"q": "q", "k": "k", "v": "v", "gate": "gate", "up": "in"}

#: By path, the axis of the positions in a bridge and in the model, where the two differ (norms of heads).
Axes: TypeAlias = Mapping[str, tuple[int, int]]
Shapes: TypeAlias = Mapping[str, torch.Size]
#: Called with the arguments and the output of a module's call.
_Called = Callable[[Sequence[Any], dict[str, Any], Any], None]


def open_bridges(base: PreTrainedModel, tuned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Lockstep:
    """Both models behind bridges that share their weights.

    Raises ActivationError where a bridge cannot be made or run, or does not compute what the model does.
    """
    models = base, tuned
    bridges = [bridge_of(model, tokenizer) for model in models]

    @cache
    def axes_of(reads: tuple[Read, ...]) -> Axes:
        axes, _ = (prove_bridge(*each, reads) for each in zip(models, bridges, strict=True))  # of one architecture
        return axes

    @torch.inference_mode()
    def lockstep(reads: Sequence[Read], inputs: Inputs, reduce: ReducePair, at: Tensor) -> tuple[Tensor, Tensor]:
        axes = axes_of(tuple(reads))
        first, second = (partial(run_bridged, bridge, reads, inputs, axes=axes) for bridge in bridges)
        return in_step(first, second, reduce)

    return lockstep


def bridge_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
    """A bridge on the model's raw weights, in the model's dtype. The model stays unchanged."""
    if model.config.get_text_config() is not model.config:  # pip would replace torch under a running job
        raise _refused(model, "installs packages to make a bridge of a model with parts beside the text model")
    wrapped, tokenizer_copy = shell(model), copy.deepcopy(tokenizer)
    wrapped.config.architectures = [type(model).__name__]
    name = str(model.config.name_or_path or type(model).__name__)
    # The bridge never tokenizes; this keeps it from loading the tokenizer again, with a BOS.
    tokenizer_copy.init_kwargs |= {"name_or_path": name, "add_bos_token": True}
    try:
        return TransformerBridge.boot_transformers(
            name, hf_model=wrapped, tokenizer=tokenizer_copy, device=str(model.device), dtype=model.dtype
        )
    except Exception as error:  # its adapters raise anything on a model that they do not expect
        raise _refused(model, f"cannot make a bridge of it ({first_line(error)})") from error


def prove_bridge(model: PreTrainedModel, bridge: TransformerBridge, reads: Sequence[Read]) -> Axes:
    """Run a model and its bridge on a few tokens: logits and reads must be the same. Returns the reads to turn."""
    (few, turned_few), (more, turned_more) = (_shapes(model, bridge, reads, n) for n in (2, 3))
    axes = {path: (_grown(turned_few[path], turned_more[path]), _grown(few[path], more[path])) for path in few}
    turned = {path: both for path, both in axes.items() if len(few[path]) == 4 and both[0] != both[1]}
    inputs = _tokens(3)
    expected, _ = capture(model, reads, inputs)

    def compare(read: Read, seen: Seen) -> None:
        for looked_at, own, theirs in zip(read.ends, seen[:2], expected[read.path][:2], strict=True):
            if looked_at and not (
                own.shape == theirs.shape and _off(own, theirs) <= torch.finfo(model.dtype).eps ** 0.5
            ):
                raise _refused(model, f"shows something else than the model at {read.path}")

    run_bridged(bridge, reads, inputs, compare, axes=turned)
    return turned


def _shapes(model: PreTrainedModel, bridge: TransformerBridge, reads: Sequence[Read], n: int) -> tuple[Shapes, Shapes]:
    """The shape of every read's input on n tokens, in the model and in its bridge."""
    inputs = _tokens(n)
    model_seen, expected = capture(model, reads, inputs)
    shapes: dict[str, torch.Size] = {}

    def receive(read: Read, seen: Seen) -> None:
        shapes[read.path] = seen.input.shape

    try:
        logits = run_bridged(bridge, reads, inputs, receive)
    except Exception as error:  # as above
        raise _refused(model, f"cannot run its bridge in {str(model.dtype)[6:]} ({first_line(error)})") from error
    off = _off(logits, expected)
    if not off <= torch.finfo(model.dtype).eps ** 0.5:
        raise _refused(model, f"does not compute what the model does (logits off by {off:.2g})")
    if missing := model_seen.keys() - shapes.keys():
        raise _refused(model, f"never calls {min(missing)}")
    return {path: seen.input.shape for path, seen in model_seen.items()}, shapes


def _tokens(n: int) -> Inputs:
    ids = torch.arange(n)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _off(own: Tensor, expected: Tensor) -> float:
    return float((own - expected).float().norm() / expected.float().norm())


def _grown(few: torch.Size, more: torch.Size) -> int:
    """The axis of the positions: the one that grows with their number."""
    return next(i for i, (a, b) in enumerate(zip(few, more, strict=True)) if a != b)


def _refused(model: PreTrainedModel, what: str) -> ActivationError:
    name = " ".join(part for part in (model.config.name_or_path, f"({type(model).__name__})") if part)
    return ActivationError(f"{name}: TransformerLens {what}; use backend: torch")


def run_bridged(
    bridge: TransformerBridge, reads: Sequence[Read], inputs: Inputs, receive: Receive, axes: Axes | None = None
) -> Float[Tensor, "batch pos vocab"]:
    """One forward of the bridge; its hooks are removed at the end, and `receive` must copy whatever it keeps."""
    on_device = {name: value.to(bridge.original_model.device) for name, value in inputs.items()}
    shape = tuple(on_device["input_ids"].shape)

    def turned(read: Read, seen: Seen) -> None:
        if axes and read.path in axes:
            there, here = axes[read.path]
            seen = Seen(seen.input.movedim(there, here), seen.output.movedim(there, here))
        receive(read, seen)

    with ExitStack() as hooks:
        for read in reads:
            hooks.enter_context(_hooked(bridge.original_model, read, shape, turned))
        logits: Tensor = bridge(on_device.pop("input_ids"), return_type="logits", use_cache=False, **on_device)
    return logits


@contextmanager
def _hooked(model: nn.Module, read: Read, shape: tuple[int, ...], receive: Receive) -> Iterator[None]:
    parts = _parts(model, read)
    seen: dict[Module | None, Seen] = {}

    def called(module: Module | None, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
        seen[module] = seen_of(args, kwargs, output, shape)
        if len(seen) == len(parts):
            receive(read, _together(seen))
            seen.clear()

    several = any(site.name == EXPERTS for site in read.sites)  # a hook point shows the first of them alone
    handles = [handle for module, part in parts.items() for handle in _watch(part, several, partial(called, module))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: nn.Module, read: Read) -> dict[Module | None, nn.Module]:
    """What the bridge has in place of the read's module: one module, or each part of a fused matrix."""
    cut = {site.module.name: site.module for site in read.sites if site.module is not None and site.module.ranges}
    owner = model.get_submodule(read.path.rpartition(".")[0])
    if cut and all(isinstance(getattr(owner, _PARTS.get(name, name), None), GeneralizedComponent) for name in cut):
        return {module: getattr(owner, _PARTS[name]) for name, module in cut.items()}
    return {None: model.get_submodule(read.path)}


def _watch(part: nn.Module, several: bool, called: _Called) -> Iterator[Any]:
    """Hooks that report every call: on a component's hook points, or on the module itself where it has none or where
    several arguments are wanted. A hook point is an identity module."""
    if several or not isinstance(part, GeneralizedComponent):
        yield part.register_forward_hook(lambda _, *call: called(*call), with_kwargs=True)
        return
    entered: list[Tensor] = []
    yield part.hook_in.register_forward_hook(lambda _, __, value: entered.append(value))
    yield part.hook_out.register_forward_hook(lambda _, __, value: called((entered.pop(),), {}, value))


def _together(seen: dict[Module | None, Seen]) -> Seen:
    """The parts of a fused matrix as one call: outputs in their places, side by side."""
    if None in seen:
        return seen[None]
    first = next(iter(seen.values()))
    width = max(stop for module in seen if module is not None for _, stop in module.ranges)
    output = first.output.new_zeros(*first.output.shape[:2], width)
    for module, own in seen.items():
        start = 0
        for begin, stop in module.ranges if module is not None else ():
            output[..., begin:stop] = own.output[..., start : start + stop - begin]
            start += stop - begin
    return Seen(first.input, output)


def model_of(bridge: TransformerBridge) -> PreTrainedModel:
    """The Hugging Face model that a bridge was made of, on the weights that it holds. The bridge stays unchanged.

    Raises ActivationError for a bridge in compatibility mode, which holds other weights than the checkpoint.
    """
    wrapped = bridge.original_model
    if bridge.compatibility_mode:
        raise ActivationError(
            f"{wrapped.config.name_or_path or 'TransformerBridge'}: compatibility mode has folded its norms into its "
            "matrices, which are no longer the checkpoint's; pass a bridge without it"
        )
    model = skeleton(wrapped.config)
    for path, module in model.named_modules():
        original = wrapped.get_submodule(path)
        while isinstance(original, GeneralizedComponent):
            original = original.original_component
        for kind in ("_parameters", "_buffers"):
            tensors = getattr(module, kind)
            tensors |= {name: getattr(original, name) for name, value in tensors.items() if value is not None}
    return model.eval()
