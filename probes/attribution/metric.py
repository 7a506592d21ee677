"""Behaviour metrics that effects are measured on: one number per prompt, from one forward pass."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.finding import DISCOVERED, Finding
from probes.capture.hooks.turns import together
from probes.errors import RunError
from probes.suite import OWN_METRIC, metric_names
from tv.architecture.trunk import ends_of
from tv.checkpoints.streamed import in_memory, is_streamed
from tv.errors import choices, first_line
from tv.prompts.behaviour import metric_values
from tv.prompts.encoding import Batch, Encoded, positions
from tv.prompts.files import Prompt
from tv.prompts.metric import METRICS, parting
from tv.prompts.read_logits import ReadLogits
from tv.runtime.common_rows import common_rows

#: The positions of a prompt that a metric reads.
Reads = Callable[[Encoded], Sequence[int]]
Logits: TypeAlias = Float[Tensor, "batch pos vocab"] | ReadLogits
Values = Callable[[Any, Batch], Float[Tensor, " batch"]]  # of Logits; of a user's metric, of the tensor


@dataclass(frozen=True)
class Metric:
    """`values` gives one number per prompt, NaN where it has none; `smooth` says whether its gradient is meaningful.

    `reads` gives the positions whose logits it reads; None: it may read any. `by_position` says that it only takes
    logits at these out. `last` are products of the last block that are made at these alone, and with `alone` no logits
    are there but these; see `probes.attribution.last_block`.
    """

    name: str
    values: Values
    smooth: bool = True
    reads: Reads | None = None
    finding: Finding | None = None  # that it reads, of a discovery
    by_position: bool = False
    last: tuple[str, ...] = ()
    alone: bool = False

    def of(self, model: PreTrainedModel, batch: Batch) -> Float[Tensor, " batch"]:
        """The metric of every prompt of a batch, from one forward pass."""
        return self.values(self.logits(model, batch), batch)

    def logits(self, model: PreTrainedModel, batch: Batch, **inputs: Tensor) -> Logits:
        """The logits of one forward pass, with nothing computed behind the last attention that is not read."""
        read = positions_read(batch, self.reads)
        with only_at(model, self.last, read.flatten().nonzero()[:, 0].to(model.device)) if self.last else nullcontext():
            logits = answers(model, batch, self.reads, self.alone, **inputs)
        return ReadLogits(logits[0], read) if self.alone else logits


def require_metric(name: str) -> None:
    """Raise RunError, before any work, if a user's metric cannot be imported."""
    if OWN_METRIC.fullmatch(name) and not name.startswith(DISCOVERED):
        _imported(name)


def require_answers(prompts: Sequence[Prompt], metric: str) -> None:
    """Raise RunError, before any work, where no prompt has what a metric needs."""
    if metric in METRICS and not any(METRICS[metric].can_read(prompt) for prompt in prompts):
        raise _unanswerable(metric, prompts)


def answerable(encoded: Sequence[Encoded], metric: str) -> list[Encoded]:
    """The prompts that have what a metric needs. Raises RunError if there are none."""
    if metric not in METRICS:
        return list(encoded)
    usable = [item for item in encoded if METRICS[metric].has(item)]
    if not usable:
        raise _unanswerable(metric, [item.prompt for item in encoded])
    return usable


def _unanswerable(metric: str, prompts: Sequence[Prompt]) -> RunError:
    without_foil = any(METRICS["target_nll"].can_read(prompt) for prompt in prompts)
    other = "target_nll, which needs only the targets" if without_foil else "kl, which needs neither"
    return RunError(
        f"attribution by {metric}: no prompt has {METRICS[metric].needed}; add them to the prompt set, choose "
        f"the metric {other}, or leave `attribute` out of the suite (of a command: give --metric)"
    )


def read_by(name: str) -> Reads | None:
    """The positions at which a metric takes logits, where it needs no others; None where that is not known by name."""
    if name in METRICS:
        return METRICS[name].reads if METRICS[name].by_position else None
    return {"kl": _predicting, "first_divergence": parting}.get(name)


def metric_of(name: str, tuned: PreTrainedModel, batches: Sequence[Batch], finding: Finding | None = None) -> Metric:
    """The metric of this name on these prompts.

    A registered metric: see `tv.prompts.metrics`. kl: KL(tuned ‖ model), nats, mean over the positions that predict
    the target, or at a prompt's last one where it has none; the tuned model's logits are kept from one forward.
    first_divergence: the logit difference, on prompts that `divergence.parted` has cut where the models diverge.
    discovered:…: a `finding`, by the logits of its tokens or, without tokens, KL(tuned ‖ model) at its places.
    `module:function` is imported, also from the working directory, and called with (logits, batch). Raises RunError for
    a name that is none of these, or cannot be imported.
    """
    if name in METRICS:
        registered = METRICS[name]
        values = partial(metric_values, registered)
        return Metric(name, values, registered.smooth, registered.reads, by_position=registered.by_position)
    if name == "first_divergence":
        return Metric(name, partial(metric_values, METRICS["logit_diff"]), reads=parting, by_position=True)
    if finding is not None and len(finding.tokens):
        return Metric(name, finding.along, reads=finding.reads, finding=finding, by_position=True)
    if name == "kl" or finding is not None:
        reads = _predicting if finding is None else finding.reads
        values = partial(_kl, _reference(tuned, batches, reads), reads)
        return Metric(name, values, reads=reads, finding=finding, by_position=True)
    if not OWN_METRIC.fullmatch(name):
        raise RunError(f"attribution: no metric {name!r}{choices(name, metric_names())}, and module:function")
    return Metric(name, partial(_checked, name, _imported(name)))


def _kl(reference: Mapping[str, Tensor], reads: Reads, logits: Logits, batch: Batch) -> Tensor:
    divergences = []
    for row, item in zip(logits, batch.encoded, strict=True):
        given = row[list(reads(item))]
        wanted, given = common_rows(reference[item.prompt.id].to(given.device), given, dim=-1)
        p, q = wanted.log_softmax(-1), given.double().log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1).mean())
    return torch.stack(divergences)


def _reference(tuned: PreTrainedModel, batches: Sequence[Batch], reads: Reads) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}

    def read(batch: Batch) -> None:
        logits = answers(tuned, batch, reads)
        for row, item in zip(logits, batch.encoded, strict=True):
            kept[item.prompt.id] = row[list(reads(item))].double()

    with torch.inference_mode():
        list(together(tuned)([partial(read, batch) for batch in batches]))
    return {name: value.clone() for name, value in kept.items()}


def _predicting(item: Encoded) -> list[int]:
    """The positions that predict the target's tokens, or the prompt's last."""
    return list(positions(item, "target")) if not item.continued else list(item.generated)


def answers(
    model: PreTrainedModel, batch: Batch, reads: Reads | None = None, alone: bool = False, **inputs: Tensor
) -> Float[Tensor, "batch pos vocab"]:
    """The logits of one forward pass; 0 at positions that are not among `reads`, where the unembedding is not run.

    With `alone` those at `reads` are one row, prompt by prompt, and no others are there. Of a streamed model all:
    forward passes that take turns would put their own in its place, one over the other.
    """
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    with nullcontext() if reads is None or is_streamed(model) else unembedding(model, batch, reads, alone):
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **inputs).logits
    return logits


@contextmanager
def unembedding(model: PreTrainedModel, batch: Batch, reads: Reads | None, alone: bool = False) -> Iterator[None]:
    """Run the unembedding at some positions only: with a large vocabulary, it is much of a small model's work.

    With `alone` it gives these in one row; else they are where they belong, and 0 elsewhere.
    """
    if reads is None:
        yield
        return
    wanted = positions_read(batch, reads)
    _, head = ends_of(model)
    kept, run = head.__dict__.get("forward"), head.forward

    def forward(x: Tensor) -> Tensor:
        in_memory(head)
        logits: Tensor = run(x[wanted.to(x.device)])
        return logits[None] if alone else ReadLogits(logits, wanted).among_zeros()

    head.forward = forward
    try:
        yield
    finally:
        if kept is None:
            del head.forward
        else:
            head.forward = kept


def positions_read(batch: Batch, reads: Reads | None) -> Bool[Tensor, "batch pos"]:
    """The positions whose logits a metric reads; all where it may read any."""
    wanted = torch.full(batch.input_ids.shape, reads is None, dtype=torch.bool)
    if reads is not None:
        for i, item in enumerate(batch.encoded):
            wanted[i, list(reads(item))] = True
    return wanted


@contextmanager
def only_at(model: PreTrainedModel, paths: Sequence[str], at: Int[Tensor, " k"]) -> Iterator[None]:
    """These products at some places alone, while this lasts, and 0 elsewhere. `at` are indices into (batch · pos)."""
    kept = []
    try:
        for owner in map(model.get_submodule, paths):
            kept.append((owner, owner.__dict__.get("forward")))
            owner.forward = _at(owner.forward, at)
        yield
    finally:
        for owner, before in kept:
            if before is None:
                owner.__dict__.pop("forward", None)
            else:
                owner.forward = before


def _at(run: Callable[[Tensor], Tensor], at: Int[Tensor, " k"]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        found = run(x.flatten(0, -2).index_select(0, at))
        whole = found.new_zeros(x.shape[:-1].numel(), found.shape[-1]).index_copy(0, at, found)
        # no view of another tensor: a model may change it in place, and a hook on it would be lost
        return whole.unflatten(0, x.shape[:-1]).clone()

    return forward


def _imported(name: str) -> Values:
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        imported: Values = getattr(importlib.import_module(module), function)
    except Exception as error:  # a user's module may raise anything
        raise RunError(f"metric {name!r} cannot be imported: {first_line(error)}") from error
    finally:
        sys.path.remove(here)
    if not callable(imported):
        raise RunError(f"metric {name!r} is not a function")
    return imported


def _checked(name: str, function: Values, logits: Tensor, batch: Batch) -> Tensor:
    try:
        value = function(logits, batch)
    except Exception as error:
        raise RunError(f"metric {name!r} failed: {type(error).__name__}: {first_line(error)}") from error
    n = len(batch.encoded)
    if not isinstance(value, Tensor) or tuple(value.shape) != (n,):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise RunError(f"metric {name!r} must return one number a prompt, a tensor of shape [{n}], not {got}")
    return value.double()
