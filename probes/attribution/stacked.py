"""Many variants of one model block by block: what variants have in common is computed once.

Variants that are alike up to a block share one row of hidden states there, and those that have the same weights in it
go through it together, stacked along the batch. So a block's weights are swapped once for all of them, units of one
block share everything before it, and sets of units share their first blocks.

Of a model that is larger than memory (`tv.checkpoints.streamed`) each block is read once for all variants that go
through together. What waits between two blocks lies in memory up to a bound, and beyond it in files that are mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.forwards import Floats, Swap, swapped
from probes.attribution.metric import Metric, only_at
from probes.attribution.packing import Pack, Sheet
from probes.attribution.parts import Parts
from probes.attribution.waiting import FILED, IN_MEMORY, Waiting
from tv.architecture.anatomy import Architecture
from tv.checkpoints.streamed import is_streamed
from tv.prompts.encoding import Batch, Encoded
from tv.prompts.read_logits import ReadLogits

#: What a variant changes, by level: −1 before the blocks, a block's layer, n_layers behind them.
Levels = Mapping[int, Any]
#: (level, change) → the parameters that have other values there.
Tensors = Callable[[int, Any], Mapping[str, Tensor]]

#: Tokens in one call of a block, at most: more do not compute faster, and what a block makes of them takes memory.
_AT_ONCE = {"cpu": 2048}
_AT_ONCE_ELSEWHERE = 32768
#: Entries of logits at once.
_LOGITS = 2**22


class Row(Parts):
    """One model on packs of prompts side by side, to be run part by part with whatever weights it has then."""

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        sheet: Sheet,
        like: Parts | None = None,
        last: Sequence[str] = (),
    ) -> None:
        """See `Parts` for `like`; `last` are products of the last block that are made where tokens are read alone."""
        device = model.device
        inputs = {
            "input_ids": sheet.ids.to(device),
            "attention_mask": sheet.mask.to(device),
            "position_ids": sheet.positions.to(device),
        }
        super().__init__(model, architecture, inputs, like)
        self.sheet, self._last = sheet, last
        self._read, self._rows = sheet.read.to(device), torch.arange(len(sheet.packs), device=device)[:, None]
        # Behind the blocks only the tokens that are read go on; GPT-2 cuts its output to the length of its input.
        at, own = self._read, self._rows
        self._ends = {
            "input_ids": inputs["input_ids"][own, at],
            "attention_mask": inputs["attention_mask"][own[..., None], 0, at[..., None], at[:, None]][:, None],
            "position_ids": inputs["position_ids"][own, at],
        }

    def through(
        self, layer: int, rows: Sequence[Float[Tensor, "packs n d_model"]]
    ) -> Iterator[Float[Tensor, "packs n d_model"]]:
        """What a block makes of several variants' hidden states."""
        size = self.sheet.ids.numel()
        several = max(1, _AT_ONCE.get(rows[0].device.type, _AT_ONCE_ELSEWHERE) // size)
        for i in range(0, len(rows), several):
            some = rows[i : i + several]
            with self._where_read(layer, len(some)):
                found = self.block(layer, torch.cat(tuple(some)))
            yield from found.split(len(self.sheet.packs))

    def _where_read(self, layer: int, times: int) -> AbstractContextManager[None]:
        if layer < self.n_blocks - 1 or not self._last:
            return nullcontext()
        length, size = self.sheet.ids.shape[1], self.sheet.ids.numel()
        at = torch.unique(self._read + length * self._rows)
        every = at + size * torch.arange(times, device=at.device)[:, None]
        return only_at(self.model, self._last, every.flatten())

    def values(self, rows: Sequence[Float[Tensor, "packs n d_model"]], metric: Metric) -> Floats:
        """The metric of every prompt of the sheet, (rows, prompts), from what the last block gave."""
        found, packs = [], self.sheet.packs
        size = int(self.model.config.get_text_config().vocab_size) * self._read.numel()
        several = max(1, _LOGITS // size)
        for i in range(0, len(rows), several):
            hidden = torch.cat([row[self._rows, self._read] for row in rows[i : i + several]])
            logits = self.behind(hidden, self._ends).unflatten(0, (-1, len(packs)))
            found.append(np.concatenate([_values(logits[:, p], pack, metric) for p, pack in enumerate(packs)], axis=1))
        return np.concatenate(found)


def values_of_variants(
    model: PreTrainedModel, rows: Sequence[Row], variants: Sequence[Levels], tensors: Tensors, metric: Metric
) -> Floats:
    """The metric under each variant, (variants, prompts), prompts in the order of the rows.

    Memory: at most `IN_MEMORY` bytes of hidden states between two blocks (of a streamed model as many as its largest
    part has), and what a block makes of a few rows.
    """
    n_layers = rows[0].n_blocks
    # Sorted, so that variants with the same first changes are computed together.
    order = sorted(range(len(variants)), key=lambda i: [str(variants[i].get(level)) for level in range(-1, n_layers)])
    several = at_once(model, sum(row.sheet.ids.numel() for row in rows))
    found: dict[int, Floats] = {}
    with torch.inference_mode():
        for i in range(0, len(order), several):
            some = order[i : i + several]
            found |= dict(zip(some, _together(model, rows, [variants[j] for j in some], tensors, metric), strict=True))
    return np.stack([found[i] for i in range(len(variants))])


def at_once(model: PreTrainedModel, tokens: int) -> int:
    """How many variants go through the model together, on packs of so many tokens in all."""
    size = tokens * model.config.get_text_config().hidden_size * model.dtype.itemsize
    return max(1, (FILED if is_streamed(model) else IN_MEMORY) // size)


def _together(
    model: PreTrainedModel, rows: Sequence[Row], variants: Sequence[Levels], tensors: Tensors, metric: Metric
) -> list[Floats]:
    n_layers = rows[0].n_blocks
    states: dict[int, list[Tensor]] = {}  # of what differs so far: hidden states of every pack
    at = [0] * len(variants)  # which of them is each variant's
    values: dict[int, Floats] = {}
    for level in range(-1, n_layers + 1):
        ways = [(variants[i].get(level), at[i]) for i in range(len(variants))]
        after = {way: number for number, way in enumerate(dict.fromkeys(ways))}
        new: dict[int, list[Tensor]] = {number: [] for number in after.values()}
        shelf = Waiting(model)
        for change in dict.fromkeys(change for change, _ in after):
            before = [state for other, state in after if other == change]
            numbers = [after[change, state] for state in before]
            with swapped(model, Swap(partial(_of, tensors, level, change), level)):
                if level < 0:
                    new[numbers[0]] = [shelf.put(row.entering().clone()) for row in rows]
                elif level == n_layers:
                    parts = [row.values([states[s][r] for s in before], metric) for r, row in enumerate(rows)]
                    values |= dict(zip(numbers, np.concatenate(parts, axis=1), strict=True))
                else:
                    for r, row in enumerate(rows):
                        outputs = row.through(level, [states[s][r] for s in before])
                        for number, output in zip(numbers, outputs, strict=True):
                            new[number].append(shelf.put(output))
        states, at = new, [after[way] for way in ways]
    return [values[number] for number in at]


def _of(tensors: Tensors, level: int, change: Any) -> Mapping[str, Tensor]:
    return {} if change is None else tensors(level, change)


def _values(logits: Float[Tensor, "rows k vocab"], pack: Pack, metric: Metric) -> Floats:
    """(rows, prompts). The metric is given a prompt's logits where they belong; others are 0, or not there."""
    columns = []
    for item, (places, indices) in zip(pack.encoded, pack.places, strict=True):
        n = max(len(item.ids), places[-1] + 1)
        several = max(1, _LOGITS // ((len(places) if metric.alone else n) * logits.shape[-1]))
        found = []
        for some in logits[:, list(indices)].split(several):
            at = torch.zeros(len(some), n, dtype=torch.bool)
            at[:, list(places)] = True
            read = ReadLogits(some.flatten(0, 1), at)
            found.append(metric.values(read if metric.alone else read.among_zeros(), _repeated(item, len(some))))
        columns.append(torch.cat(found))
    return torch.stack(columns, 1).double().cpu().numpy()


def _repeated(item: Encoded, times: int) -> Batch:
    ids = torch.tensor([item.ids]).expand(times, -1)
    return Batch((item,) * times, ids, torch.ones_like(ids))
