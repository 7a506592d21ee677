"""Behaviour metrics that effects are measured on: a number a prompt out of one forward pass."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.errors import RunError
from probes.suite import METRICS, OWN_METRIC
from tv.behaviour import METRICS as ANSWERS
from tv.behaviour import metrics
from tv.errors import first_line
from tv.prompts import Batch, Encoded, positions

Values = Callable[[Float[Tensor, "batch pos vocab"], Batch], Float[Tensor, " batch"]]


@dataclass(frozen=True)
class Metric:
    """`values` gives a number a prompt, NaN where it has none; `smooth` says whether its gradient means anything."""

    name: str
    values: Values
    smooth: bool = True


def answerable(encoded: Sequence[Encoded], metric: str) -> list[Encoded]:
    """The prompts that a metric can be read on. Raises RunError where there are none."""
    needs = {"logit_diff": "a target and a foil", "target_nll": "a target", "exact_match": "a target"}
    if metric not in needs:
        return list(encoded)
    has_foil = metric == "logit_diff"
    found = [item for item in encoded if (item.foil_id >= 0 if has_foil else len(item.scored) > 0)]
    if not found:
        raise RunError(
            f"attribution by {metric}: no prompt has {needs[metric]}; add them to the prompt set, choose the metric "
            "first_divergence or kl, which need none, or leave `attribute` out of the suite"
        )
    return found


def metric_of(name: str, tuned: PreTrainedModel, batches: Sequence[Batch]) -> Metric:
    """The metric of this name on these prompts.

    logit_diff, target_nll, exact_match: see `tv.behaviour.metrics`. kl: KL(tuned ‖ model), nats, mean over the
    positions that predict the target, or at a prompt's last one where it has none; the tuned model's answers are kept
    from one forward. first_divergence: the logit difference, on prompts that `divergence.parted` has cut where the
    models part.
    `module:function` is imported, the working directory included, and called with (logits, batch). Raises RunError for
    a name that is none of these, or cannot be imported.
    """
    if name in ANSWERS:
        return Metric(name, partial(_answers, name), smooth=name != "exact_match")
    if name == "first_divergence":
        return Metric(name, partial(_answers, "logit_diff"))
    if name == "kl":
        return Metric(name, partial(_kl, _reference(tuned, batches)))
    if not OWN_METRIC.fullmatch(name):
        raise RunError(f"attribution: unknown metric {name!r}; there are {', '.join(METRICS)}, and module:function")
    return Metric(name, partial(_checked, name, _imported(name)))


def _answers(name: str, logits: Tensor, batch: Batch) -> Tensor:
    return metrics(logits, batch)[name]


def _kl(reference: Mapping[str, Tensor], logits: Tensor, batch: Batch) -> Tensor:
    found = []
    for row, item in zip(logits, batch.encoded, strict=True):
        wanted = reference[item.prompt.id].to(row.device)
        common = min(wanted.shape[-1], row.shape[-1])  # of two vocabularies
        p = wanted[:, :common].log_softmax(-1)
        q = row[_predicting(item)][:, :common].double().log_softmax(-1)
        found.append((p.exp() * (p - q)).sum(-1).mean())
    return torch.stack(found)


def _reference(tuned: PreTrainedModel, batches: Sequence[Batch]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for batch in batches:
            logits = answers(tuned, batch)
            found |= {
                item.prompt.id: row[_predicting(item)].double() for row, item in zip(logits, batch.encoded, strict=True)
            }
    return {name: value.clone() for name, value in found.items()}


def _predicting(item: Encoded) -> list[int]:
    """The positions that predict the target's tokens, or the prompt's last."""
    return list(positions(item, "target")) if not item.continued else list(item.generated)


def answers(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "batch pos vocab"]:
    """The logits of one forward pass."""
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits


def _imported(name: str) -> Values:
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a person's own module runs into
        raise RunError(f"metric {name!r} cannot be imported: {first_line(error)}") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise RunError(f"metric {name!r} is no function")
    own: Values = found
    return own


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
