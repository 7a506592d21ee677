"""The noise floor of behaviour: what the base answers in another precision, a change without fine-tuning.

A mean change that is no larger than this is not one that T made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.capture.halving import within_memory
from probes.capture.hooks.turns import together
from probes.capture.noise_floor import twin_of
from probes.capture.pair import Pair
from probes.store.schemas import ALL_DOMAINS
from tv.prompts import behaviour
from tv.prompts.encoding import Batch, Encoded, positions
from tv.stats.change import LEAST_FLOOR
from tv.stats.means import mean_interval

_COLUMNS = ["precision", "domain", "metric", "n", "floor"]


def behaviour_floor(
    pair: Pair, encoded: Sequence[Encoded], *, batch_size: int, kept: MutableMapping[str, Any] | None = None
) -> pd.DataFrame:
    """`precision domain metric n floor`: how far the base's metrics move when it computes in the other precision.

    A row per domain and metric, and of each metric over `all` prompts. The floor is the mean change or the far end of
    its interval, whichever is larger; where there is no interval, the mean size of a prompt's change. Batches that are
    `kept`, by their first prompt, are not read again, and every other one is put there.
    """
    kept = {} if kept is None else kept
    read = {prompt for batch in kept.values() for of in batch.values() for prompt in of}
    left = [item for item in encoded if item.prompt.id not in read]
    with twin_of(pair) as (both, precision):

        def compared(batch: Batch) -> dict[str, list[float]]:
            base, twin = (_logits(model, batch) for model in (both.base, both.tuned))
            before, after = (behaviour.metrics(logits, batch) for logits in (base, twin))
            moved = {name: (after[name] - before[name]).tolist() for name in before}
            return moved | {"kl": _divergences(base, twin, batch)}

        for batch, moved in within_memory(left, batch_size, pair.pad_id, compared, together(pair.base)):
            ids = [item.prompt.id for item in batch.encoded]
            kept[ids[0]] = {metric: dict(zip(ids, values, strict=True)) for metric, values in moved.items()}
    changes: dict[str, dict[str, float]] = {}  # by metric, then prompt
    for found in kept.values():
        for metric, of in found.items():
            changes.setdefault(metric, {}).update(of)
    return pd.DataFrame(_rows(encoded, changes, precision), columns=_COLUMNS)


def floors_of_changes(encoded: Sequence[Encoded], changes: Mapping[str, float]) -> dict[str, float]:
    """By domain, the floor of a metric that rounding moves by so much on each prompt."""
    return {domain: floor for _, domain, _, _, floor in _rows(encoded, {"": changes}, "")}


def _rows(
    encoded: Sequence[Encoded], changes: Mapping[str, Mapping[str, float]], precision: str
) -> Iterator[tuple[str, str, str, int, float]]:
    prompts = [item.prompt for item in encoded]
    for domain in dict.fromkeys([*(prompt.domain for prompt in prompts), ALL_DOMAINS]):
        chosen = [prompt for prompt in prompts if domain in (prompt.domain, ALL_DOMAINS)]
        for metric, of in changes.items():
            known = [prompt for prompt in chosen if not np.isnan(of[prompt.id])]
            if known:
                values = [of[prompt.id] for prompt in known]
                floor = _floor(values, [prompt.cluster or prompt.id for prompt in known])
                yield precision, domain, metric, len(known), floor


def _floor(changes: Sequence[float], clusters: Sequence[str]) -> float:
    mean, lo, hi, *_ = mean_interval(changes, clusters)
    other = [lo, hi] if np.isfinite(lo) else [np.abs(changes).mean()]
    return float(max(LEAST_FLOOR, *np.abs([mean, *other])))


def _logits(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "batch pos vocab"]:
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.cpu()


def _divergences(base: Tensor, twin: Tensor, batch: Batch) -> list[float]:
    """KL(base ‖ twin) of every prompt, over the places that predict its target."""
    at = [list(positions(item, "target")) for item in batch.encoded]
    return [float(behaviour.kl_divergence(base[i, places], twin[i, places]).mean()) for i, places in enumerate(at)]
