"""The default backend: forward hooks on the Hugging Face modules, both models side by side.

Each forward runs in its own greenlet. A hook hands what it saw to the driver and pauses; once both models stand at the
same place the driver reduces the pair, and both go on. So a paired reduction sees both tensors, and neither outlives
its module's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.hooks.plan import Read, Seen

Inputs = Mapping[str, Tensor]
Receive = Callable[[Read, Seen], None]
ReducePair = Callable[[Read, Seen, Seen], None]


def lockstep(
    base: PreTrainedModel, tuned: PreTrainedModel, reads: Sequence[Read], inputs: Inputs, reduce: ReducePair
) -> tuple[Float[Tensor, "batch pos vocab"], Float[Tensor, "batch pos vocab"]]:
    """Run both models on `inputs`, calling `reduce(read, base_seen, tuned_seen)` at every read; return both logits.

    Hooks are gone when this returns or raises, whatever raised.
    """
    driver = getcurrent()

    def forward(model: PreTrainedModel) -> Tensor:
        return run_hooked(model, reads, inputs, lambda read, seen: driver.switch((read, seen)))

    pair = [greenlet(lambda model=model: forward(model)) for model in (base, tuned)]
    try:
        with torch.inference_mode():
            here = [runner.switch() for runner in pair]
            while not pair[0].dead:
                (read, base_seen), (other, tuned_seen) = here
                if read.path != other.path:
                    raise RuntimeError(f"the two models part in execution order: {read.path} and {other.path}")
                reduce(read, base_seen, tuned_seen)
                here = [runner.switch() for runner in pair]
    finally:
        for runner in pair:
            if not runner.dead:
                runner.throw()  # unwinds the paused forward, and with it removes its hooks
    return here[0], here[1]


def capture(model: PreTrainedModel, reads: Sequence[Read], inputs: Inputs) -> tuple[dict[str, Seen], Tensor]:
    """Everything the reads see in one model, by path, and the logits. Keeps whole tensors: for small inputs only."""
    seen: dict[str, Seen] = {}
    with torch.inference_mode():
        logits = run_hooked(model, reads, inputs, lambda read, value: seen.__setitem__(read.path, value))
    return seen, logits


def run_hooked(
    model: PreTrainedModel, reads: Sequence[Read], inputs: Inputs, receive: Receive
) -> Float[Tensor, "batch pos vocab"]:
    """One forward with a hook at every read; `receive` must not keep what it is given without copying it."""
    with _hooks(model, reads, receive):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


@contextmanager
def _hooks(model: PreTrainedModel, reads: Sequence[Read], receive: Receive) -> Iterator[None]:
    handles = []
    try:
        for read in reads:
            hook = _hook(read, receive)
            handles.append(model.get_submodule(read.path).register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(read: Read, receive: Receive) -> Callable[..., None]:
    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        value = args[0] if args else kwargs["hidden_states"]
        receive(read, Seen(value, output[0] if isinstance(output, tuple) else output))

    return hook
