"""nnsight's traces on an NDIF server, which has the two models loaded.

Two requests cannot wait for each other. So the server cuts each model's reads down to the places that the reductions
and losses use, and the two are joined here, read by read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import nnsight
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.capture.hooks.nnsight_backend import LOGITS, Steps, Take, steps_of, traced
from probes.capture.hooks.plan import Read, Seen
from probes.capture.hooks.shell import shell
from probes.capture.hooks.torch_backend import Inputs, Lockstep, ReducePair, tensors_of
from probes.errors import ActivationError
from tv.checkpoints.location import for_transformers, place_of
from tv.errors import first_line

#: A tensor at the chosen places, (n, d), and True; or whole and False, where it is not (batch, pos, d); None: not kept.
Kept: TypeAlias = tuple[Tensor, bool] | None


def open_remote(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: tuple[str, str],
) -> Lockstep:
    """Both models as a server knows them, by their hub ids (`org/name`, `org/name@revision`).

    The models here supply their structure alone. Raises ActivationError, naming the model, where the server that
    nnsight is configured for gives no result.
    """
    nnsight.register("probes")  # our functions that a trace calls travel with it, as source
    nnsight.CONFIG.APP.REMOTE_LOGGING = False  # else a line for every request among our lines
    remotes = [_remote(model, tokenizer, name) for model, name in zip((base, tuned), names, strict=True)]
    order = cache(partial(steps_of, base))

    @torch.inference_mode()
    def lockstep(
        reads: Sequence[Read], inputs: Inputs, reduce: ReducePair, at: Bool[Tensor, "batch pos"]
    ) -> tuple[Tensor, Tensor]:
        steps = order(tuple(reads))
        shape, flat = (at.shape[0], at.shape[1]), at.flatten().nonzero()[:, 0]
        by_path = {read.path: read for read in reads}
        ends = {path: read.ends for path, read in by_path.items()}
        take = partial(kept_at, ends=ends, flat=flat, shape=shape)
        captures = [_requested(*remote, steps, inputs, take) for remote in zip(remotes, names, strict=True)]

        def restored(capture: dict[str, Any], path: str, device: torch.device) -> Seen:
            value, output, rest = capture.pop(path)
            first, second, *others = (_restored(kept, flat, shape, device) for kept in (value, output, *rest))
            return Seen(first, second, tuple(others))

        devices = base.device, tuned.device
        for path in (path for path, left in steps if left):
            reduce(by_path[path], *(restored(*side) for side in zip(captures, (path, path), devices, strict=True)))
        logits = [restored(capture, LOGITS, device).output for capture, device in zip(captures, devices, strict=True)]
        return logits[0], logits[1]

    return lockstep


def kept_at(
    path: str,
    entered: tuple[Sequence[Any], Mapping[str, Any]],
    output: Any,
    *,
    ends: Mapping[str, tuple[bool, bool]],
    flat: Int[Tensor, " n"],
    shape: tuple[int, int],
) -> tuple[Kept, Kept, tuple[Kept, ...]]:
    """What is kept of one read: its input, its output and, with both, all other inputs. Runs where the model is."""

    def cut(value: Tensor) -> Kept:
        whole = value.ndim != 3 or tuple(value.shape[:2]) != shape
        chosen = value if whole else value.flatten(0, 1)[flat.to(value.device)]
        return chosen.detach().cpu(), not whole

    value, first, rest = tensors_of(*entered, output, shape)
    into, out = ends.get(path, (False, True))
    others = tuple(cut(other) for other in rest) if into and out else ()
    return cut(value) if into else None, cut(first) if out else None, others


def _restored(kept: Kept, flat: Int[Tensor, " n"], shape: tuple[int, int], device: torch.device) -> Tensor:
    """(batch, pos, d) again, zero at every place that was not kept."""
    if kept is None:
        return torch.empty(0, device=device)
    value, chosen = kept
    if not chosen:
        return value.to(device)
    whole = value.new_zeros(shape[0] * shape[1], value.shape[1])
    return whole.index_copy(0, flat, value).unflatten(0, shape).to(device)


def _remote(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> Any:
    name, revision = for_transformers(place_of(source))
    wrapped = shell(model)
    wrapped.name_or_path = wrapped.config.name_or_path = name
    tokenizer_copy = copy.deepcopy(tokenizer)  # nnsight sets it to pad on the left
    return nnsight.TransformersModel(
        wrapped, tokenizer=tokenizer_copy, task="text-generation", revision=revision, device=model.device
    )


def _requested(model: Any, name: str, steps: Steps, inputs: Inputs, take: Take) -> dict[str, Any]:
    try:
        return traced(model, steps, inputs, take, {"remote": True})
    except Exception as error:  # from HTTP, the socket, the hub, or the server itself
        raise ActivationError(
            f"{name}: the nnsight server gave no result ({first_line(error)}); see that it serves this model and that "
            "NDIF_API_KEY is set, or leave --remote out"
        ) from error
