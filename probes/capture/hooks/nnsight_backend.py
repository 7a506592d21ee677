"""nnsight as capture backend: the plan as one trace a model.

nnsight runs the body of a trace in a greenlet, which waits at every value that it asks for until the model gets there.
So a body can be paused for the other model just as a hook can, and two traces run in lockstep: nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import nnsight
import torch
from torch import Tensor
from transformers import PreTrainedModel

from probes.capture.hooks.plan import Read
from probes.capture.hooks.shell import shell
from probes.capture.hooks.torch_backend import Inputs, Lockstep, Receive, ReducePair, in_step, seen_of

#: (module path, whether it is left or entered), in execution order.
Steps: TypeAlias = tuple[tuple[str, bool], ...]
#: Called with a path and its module's arguments and output; what it returns is kept by path.
Take: TypeAlias = Callable[[str, Any, Any], Any]
#: The key of the model's logits among its modules' paths.
LOGITS = "logits"


def open_traces(base: PreTrainedModel, tuned: PreTrainedModel) -> Lockstep:
    """Both models, traced in this process. nnsight wraps a shell of each, so that the models stay unchanged."""
    models = [(model, nnsight.NNsight(shell(model))) for model in (base, tuned)]
    order = cache(partial(steps_of, base))

    @torch.no_grad()
    def lockstep(reads: Sequence[Read], inputs: Inputs, reduce: ReducePair, at: Tensor) -> tuple[Tensor, Tensor]:
        steps = order(tuple(reads))
        first, second = (
            partial(
                _run_traced, wrapped, reads, steps, {name: value.to(model.device) for name, value in inputs.items()}
            )
            for model, wrapped in models
        )
        return in_step(first, second, reduce)

    return lockstep


def _run_traced(model: Any, reads: Sequence[Read], steps: Steps, inputs: Inputs, receive: Receive) -> Tensor:
    by_path = {read.path: read for read in reads}
    shape = tuple(inputs["input_ids"].shape)

    def hand_over(path: str, entered: Any, output: Any) -> Tensor | None:
        if path == LOGITS:
            return output
        args, kwargs = entered
        receive(by_path[path], seen_of(args, kwargs, output, shape))
        return None

    logits: Tensor = traced(model, steps, inputs, hand_over, {})[LOGITS]
    return logits


def traced(model: Any, steps: Steps, inputs: Inputs, take: Take, options: dict[str, Any]) -> dict[str, Any]:
    """What `take` returns for every module left, and for the logits, by path, from one forward.

    Every trace is made here. Its body may run on a server: it uses nothing but nnsight and its arguments.
    """
    entered: dict[str, Any] = {}
    with model.trace(**inputs, use_cache=False, **options) as tracer:
        kept = nnsight.save({})
        for path, left in steps:
            module = model.get(path)
            if left:
                kept[path] = take(path, entered.pop(path), module.output)
            else:
                entered[path] = module.inputs
        logits = tracer.result.logits
        kept["logits"] = take("logits", ((logits,), {}), logits)
    return kept


def steps_of(model: PreTrainedModel, reads: Sequence[Read]) -> Steps:
    """The order in which a forward enters and leaves the modules of the reads, which a trace must follow."""
    steps: list[tuple[str, bool]] = []
    handles = []
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        for path in (read.path for read in reads):
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: steps.append((path, False))))
            handles.append(module.register_forward_hook(lambda *_, path=path: steps.append((path, True))))
        with torch.inference_mode():
            model(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(steps)
