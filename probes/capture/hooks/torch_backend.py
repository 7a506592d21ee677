"""The default backend: forward hooks on the Hugging Face modules, both models side by side.

Each forward runs in its own greenlet. A hook hands its tensors to the driver and pauses; once both models are at the
same place, the driver reduces the pair and resumes both. So a paired reduction sees both tensors, and neither outlives
its module's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.capture.hooks.plan import Read, Seen
from probes.capture.hooks.turns import START, Coming, Gate, meeting, turn, unwind

Inputs = Mapping[str, Tensor]
Receive = Callable[[Read, Seen], None]
ReducePair = Callable[[Read, Seen, Seen], None]
#: One forward pass that calls its argument at every read, and returns the logits.
Forward = Callable[[Receive], Tensor]
#: What every backend makes of a pair: `lockstep` bound to both models. The last argument marks the places (batch, pos)
#: that the reduction and the losses read; values elsewhere may be anything.
Lockstep = Callable[[Sequence[Read], Inputs, ReducePair, Tensor], tuple[Tensor, Tensor]]


def in_turn(place: int, base: Coming, tuned: Coming) -> None:
    """Wait at a gate of two streamed models for the other passes."""
    base.taken(), tuned.taken()
    turn(place, base.value, tuned.value)


def lockstep(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    reads: Sequence[Read],
    inputs: Inputs,
    reduce: ReducePair,
    during: Callable[[], AbstractContextManager[None]] = nullcontext,
    at_gate: Callable[[int, Coming, Coming], None] = in_turn,
) -> tuple[Float[Tensor, "batch pos vocab"], Float[Tensor, "batch pos vocab"]]:
    """Run both models on `inputs`, calling `reduce(read, base_seen, tuned_seen)` at every read; return both logits.

    Each model's inputs go to its own device. Hooks are removed when this returns or raises. Streamed models are within
    `during` from when it is this pass's turn to begin, and `at_gate` waits for the other passes.
    """

    def forward(model: PreTrainedModel) -> Forward:
        def run(receive: Receive) -> Tensor:
            with meeting(receive):
                return run_hooked(model, reads, inputs, receive)

        return run

    def at(read: Read | Gate, base_seen: Any, tuned_seen: Any) -> None:
        if isinstance(read, Gate):
            at_gate(read.place, base_seen, tuned_seen)
        else:
            reduce(read, base_seen, tuned_seen)

    turn(START)
    with torch.inference_mode(), during():
        return in_step(forward(base), forward(tuned), at)


def in_step(base: Forward, tuned: Forward, reduce: ReducePair) -> tuple[Tensor, Tensor]:
    """Two forward passes, each paused at every read until the other is there too and the pair is reduced."""
    driver = getcurrent()

    def start(i: int, run: Forward) -> greenlet:
        def receive(*seen: Any) -> None:
            waiting[i] = getcurrent()  # the one started here, or one that a backend runs inside it
            driver.switch(seen)

        return greenlet(lambda: run(receive))

    waiting: list[greenlet] = []
    waiting += [start(i, run) for i, run in enumerate((base, tuned))]
    try:
        here = [waiting[i].switch() for i in range(2)]
        while not waiting[0].dead:
            (read, base_seen), (other, tuned_seen) = here
            if read.path != other.path:
                raise RuntimeError(f"the two models differ in execution order: {read.path} and {other.path}")
            reduce(read, base_seen, tuned_seen)
            del here, base_seen, tuned_seen  # nothing outlives its module's forward
            here = [waiting[i].switch() for i in range(2)]
    finally:
        unwind(waiting)  # through the whole forward, which takes its hooks away
    return here[0], here[1]


def capture(model: PreTrainedModel, reads: Sequence[Read], inputs: Inputs) -> tuple[dict[str, Seen], Tensor]:
    """Everything the reads see in one model, by path, and the logits. Keeps whole tensors: for small inputs only."""
    seen: dict[str, Seen] = {}

    def keep(read: Read, value: Seen) -> None:  # a copy: Falcon adds attention to the MLP's output in place
        seen[read.path] = Seen(value.input.clone(), value.output.clone(), value.rest)

    with torch.inference_mode():
        logits = run_hooked(model, reads, inputs, keep)
    return seen, logits


def run_hooked(
    model: PreTrainedModel, reads: Sequence[Read], inputs: Inputs, receive: Receive
) -> Float[Tensor, "batch pos vocab"]:
    """One forward with a hook at every read; `receive` must copy whatever it keeps."""
    on_device = {name: value.to(model.device) for name, value in inputs.items()}
    shape = tuple(on_device["input_ids"].shape)
    with _hooks(model, reads, shape, receive):
        logits: Tensor = model(**on_device, use_cache=False).logits
    return logits


@contextmanager
def _hooks(model: PreTrainedModel, reads: Sequence[Read], shape: tuple[int, ...], receive: Receive) -> Iterator[None]:
    handles = []
    try:
        for read in reads:
            hook = _hook(read, shape, receive)
            handles.append(model.get_submodule(read.path).register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(read: Read, shape: tuple[int, ...], receive: Receive) -> Callable[..., None]:
    own = getcurrent()

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if getcurrent() is own:  # and not that of another forward which takes turns with this one
            receive(read, seen_of(args, kwargs, output, shape))

    return hook


def seen_of(args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, shape: tuple[int, ...]) -> Seen:
    """A module's call in the form that a hook hands over."""
    return Seen(*tensors_of(args, kwargs, output, shape))


def tensors_of(
    args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """(first input, first output, all further tensors among the inputs) of a module's call, by position."""
    named = [kwargs["hidden_states"]] if not args and "hidden_states" in kwargs else []
    given = [x for x in (*args, *named, *kwargs.values()) if isinstance(x, Tensor)]
    value, rest = given[0], [x for x in given[1:] if x is not given[0]]
    others = tuple(by_position(other, shape) for other in rest)
    first = output[0] if isinstance(output, tuple) else output
    return by_position(value, shape), by_position(first, shape), others


def by_position(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`value` as (batch, pos, …), also where a module gets all tokens of a batch on one axis, or as one head's."""
    if value.ndim == 4 and value.shape[:3] == (shape[0], 1, shape[1]):
        return value[:, 0]
    flat = value.ndim == 2 and len(value) == shape[0] * shape[1] and value.shape != shape
    return value.unflatten(0, shape) if flat else value
