"""The dtype noise floor: the base against itself in another precision, a change without fine-tuning.

A gate that flips no more often than here did not flip because of T.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from probes.capture.hooks.plan import Read, Seen, plan
from probes.capture.hooks.torch_backend import lockstep
from probes.capture.hooks.turns import take_turns, together
from probes.capture.pair import Pair
from probes.measures.gates import compare_gates, gate_bits, words
from probes.measures.places import places_of
from probes.suite import Suite
from tv.checkpoints.casting import cast
from tv.checkpoints.streamed import is_streamed
from tv.prompts.encoding import Batch, Encoded, batches
from tv.runtime.memory import is_out_of_memory
from tv.runtime.seeds import seed_of
from tv.stats.means import mean_interval

#: Prompts that the floor is measured on: a rate over thousands of neurons needs no more.
PROMPTS = 32


def has_noise_floor(suite: Suite, device: str) -> bool:
    """Whether a run has one: it is skipped where the base is spread over devices, as no copy is."""
    behaves = "behaviour" in suite.measure or suite.attribute is not None
    return suite.noise_floor and (behaves or "gates" in suite.measure) and device != "auto"


def noise_floor(
    pair: Pair, encoded: Sequence[Encoded], *, batch_size: int, seed: int, kept: MutableMapping[str, Any] | None = None
) -> pd.DataFrame:
    """`precision layer n flip_rate flip_rate_lo flip_rate_hi jaccard relative_change`, of the base and its twin.

    Means over prompts, with 95 % intervals over their clusters; `relative_change` is ‖Δresid_post‖/‖resid_post‖.
    `precision` is the twin's. Layers without one gate for all tokens (a mixture of experts) have a NaN flip rate.
    Batches that are `kept`, by their first prompt, are not read again, and every other one is put there.
    """
    chosen = some_of_each_domain(encoded, PROMPTS, seed)
    kept = {} if kept is None else kept
    reads = plan(pair.architecture, ("gate", "resid_post"))
    with twin_of(pair) as (both, precision):
        every = {batch.encoded[0].prompt.id: batch for batch in batches(chosen, batch_size, pair.pad_id)}
        left = {first: batch for first, batch in every.items() if first not in kept}
        work = [partial(_compared, both, reads, batch) for batch in left.values()]
        for first, found in zip(left, together(pair.base)(work), strict=True):
            kept[first] = found
    rows = [row for of_batch in kept.values() for row in of_batch]
    frame = pd.DataFrame(rows, columns=["layer", "measure", "prompt_id", "value"])
    clusters = {item.prompt.id: item.prompt.cluster or item.prompt.id for item in chosen}
    layer_rows = []
    for layer, layer_values in frame.groupby("layer"):
        table = layer_values.pivot(index="prompt_id", columns="measure", values="value")
        table = table.reindex(columns=["flip_rate", "jaccard", "relative_change"])
        means = mean_interval(table.to_numpy(), [clusters[prompt] for prompt in table.index])
        row = {"precision": precision, "layer": layer, "n": len(table)}
        row |= dict(zip(table.columns, means.mean, strict=True))
        layer_rows.append(row | {"flip_rate_lo": means.lo[0], "flip_rate_hi": means.hi[0]})
    return pd.DataFrame(layer_rows)


def _compared(both: Pair, reads: Sequence[Read], batch: Batch) -> list[tuple[int, str, str, float]]:
    """(layer, measure, prompt, mean) of one batch."""
    places = places_of(batch, "all")
    rows = []

    def reduce(read: Read, base: Seen, tuned: Seen) -> None:
        for site in read.sites:
            a, b = places.take(base.at(site)), places.take(tuned.at(site))
            if site.name == "gate":
                patterns = compare_gates(words(gate_bits(a)), words(gate_bits(b)), a.shape[-1])
                measures = {"flip_rate": patterns.flip_rate, "jaccard": patterns.jaccard}
            else:
                measures = {"relative_change": (b.float() - a.float()).norm(dim=1) / a.float().norm(dim=1)}
            for name, values in measures.items():
                for i, item in enumerate(batch.encoded):
                    value = float(values[places.row.to(values.device) == i].mean())
                    rows.append((site.layer, name, item.prompt.id, value))

    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    lockstep(both.base, both.tuned, reads, inputs, reduce)
    return rows


@contextmanager
def twin_of(pair: Pair) -> Iterator[tuple[Pair, str]]:
    """The base beside a copy of itself in the other precision: bfloat16 for float32, float32 for any other.

    Where the model cannot compute in bfloat16, its weights alone are rounded to it.
    """
    other = other_precision(pair.base.dtype)
    precision = str(other).removeprefix("torch.")
    twin = _copied(pair, other)
    if not _runs(twin):
        twin, precision = _copied(pair, other, pair.base.dtype), f"{precision} weights"
    try:
        yield replace(pair, tuned=twin), precision
    finally:
        del twin


def other_precision(dtype: torch.dtype) -> torch.dtype:
    """What the twin of a base in this dtype computes in."""
    return torch.bfloat16 if dtype == torch.float32 else torch.float32


def _copied(pair: Pair, *dtypes: torch.dtype) -> PreTrainedModel:
    """A copy of the base, rounded to each of these dtypes in turn."""
    if is_streamed(pair.base):
        pair.tuned.weights.rest()  # three models keep more than two
        twin = pair.base.weights.rounded(*dtypes)
        take_turns(twin, pair.architecture)
        return twin
    twin = copy.deepcopy(pair.base)
    for dtype in dtypes:
        twin = cast(twin, dtype)
    return twin


def _runs(model: PreTrainedModel) -> bool:
    ids = torch.zeros(1, 32, dtype=torch.long, device=model.device)  # more than one chunk of a scan, too
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except RuntimeError as error:  # a part of it computes in float32 whatever the others do
        if is_out_of_memory(error):
            raise
        return False
    return True


def some_of_each_domain(encoded: Sequence[Encoded], n: int, seed: int) -> list[Encoded]:
    """At most `n` prompts, drawn in turn from every domain by their ids: one prompt more or less changes one place."""
    by_domain: dict[str, list[Encoded]] = {}
    for item in encoded:
        by_domain.setdefault(item.prompt.domain, []).append(item)
    drawn = [
        sorted(prompts, key=lambda item: seed_of(f"floor {seed} {item.prompt.id}")) for prompts in by_domain.values()
    ]
    turns = [prompts[i] for i in range(max(map(len, drawn))) for prompts in drawn if i < len(prompts)]
    return turns[:n]
