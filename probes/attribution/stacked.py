"""Many variants of one model block by block: what variants have in common is computed once.

Variants that are alike up to a block share one row of hidden states there, and those that have the same weights in it
go through it together, stacked along the batch. So a block's weights are swapped once for all of them, units of one
block share everything before it, and sets of units share their first blocks.

Of a model that is larger than memory (`tv.checkpoints.streamed`) each block is read once for all variants that go
through together. What waits between two blocks lies in memory up to a bound, and beyond it in files that are mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from mmap import mmap
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from probes.attribution.forwards import Floats, Swap, swapped
from probes.attribution.metric import Metric
from probes.attribution.packing import Pack
from tv.architecture.anatomy import Architecture
from tv.architecture.trunk import ends_of
from tv.checkpoints.streamed import is_streamed
from tv.prompts.encoding import Batch, Encoded

#: What a variant changes, by level: −1 before the blocks, a block's layer, n_layers behind them.
Levels = Mapping[int, Any]
#: (level, change) → the parameters that have other values there.
Tensors = Callable[[int, Any], Mapping[str, Tensor]]

#: Tokens in one call of a block, at most: more do not compute faster, and what a block makes of them takes memory.
_AT_ONCE = {"cpu": 2048}
_AT_ONCE_ELSEWHERE = 32768
#: Entries of logits at once.
_LOGITS = 2**24
#: What a block calls the hidden states that it is given, where it is told by name.
_HIDDEN = "hidden_states"
#: Bytes of hidden states that wait between two blocks; of a streamed model so many may lie in files.
_WAITING = 2**27
_FILED = 2**33
#: Bytes of one of these files, unless a single row is larger.
_FILE = 2**26


class Row:
    """One model on one pack of prompts, to be run part by part with whatever weights it has then."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture, pack: Pack, like: Row | None = None) -> None:
        """Looks at what blocks are given. With another row of the model, which ran them, they need not run again."""
        self._model, self.pack = model, pack
        device = model.device
        self._inputs = {
            "input_ids": pack.ids.to(device),
            "attention_mask": pack.mask.to(device),
            "position_ids": pack.positions.to(device),
        }
        self._read = pack.read.to(device)
        # Behind the blocks only the tokens that are read go on; GPT-2 cuts its output to the length of its input.
        self._ends = {
            "input_ids": self._inputs["input_ids"][:, self._read],
            "attention_mask": self._inputs["attention_mask"][:, :, self._read][..., self._read],
            "position_ids": self._inputs["position_ids"][:, self._read],
        }
        self._blocks = [model.get_submodule(block.path) for block in architecture.blocks]
        self._given: list[tuple[bool, tuple[Any, ...], dict[str, Any]]] = []
        self._rest: list[tuple[Any, ...] | None] = []
        # What a block returns besides hidden states, and is of this pack's own, only running it tells.
        known = None if like is None or any(map(_holds_tensors, like._rest)) else like._rest
        with ExitStack() as hooks:
            if known is not None:
                hooks.enter_context(_standing_in(self._blocks, [partial(_unchanged, rest) for rest in known]))
            for block in self._blocks:
                hooks.callback(block.register_forward_hook(self._look, with_kwargs=True).remove)
            with suppress(_ReachedError):
                model(**self._inputs, use_cache=False)

    def _look(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep what a block is given and returns besides hidden states. Nothing behind the last one is run."""
        others = {name: value for name, value in kwargs.items() if name != _HIDDEN}  # what came in is not kept
        self._given.append((bool(args), args[1:], others))
        self._rest.append(output[1:] if isinstance(output, tuple) else None)
        if len(self._given) == len(self._blocks):
            raise _ReachedError

    def entering(self) -> Float[Tensor, "n d_model"]:
        """What the first block is given."""
        found: list[Tensor] = []

        def forward(*args: Any, **kwargs: Any) -> Any:
            found.append(_hidden(args, kwargs))
            raise _ReachedError

        with suppress(_ReachedError), _standing_in(self._blocks[:1], [forward]):
            self._model(**self._inputs, use_cache=False)
        return found[0][0].clone()

    def through(self, layer: int, rows: Sequence[Float[Tensor, "n d_model"]]) -> Iterator[Float[Tensor, "n d_model"]]:
        """What a block makes of several rows of hidden states."""
        (by_position, args, kwargs), block = self._given[layer], self._blocks[layer]
        several = max(1, _AT_ONCE.get(rows[0].device.type, _AT_ONCE_ELSEWHERE) // len(rows[0]))
        for i in range(0, len(rows), several):
            hidden = torch.stack(tuple(rows[i : i + several]))
            output = block(hidden, *args, **kwargs) if by_position else block(**kwargs, **{_HIDDEN: hidden})
            yield from (output[0] if isinstance(output, tuple) else output).unbind()

    def values(self, rows: Sequence[Float[Tensor, "n d_model"]], metric: Metric) -> Floats:
        """The metric of every prompt of the pack, (rows, prompts), from what the last block gave."""
        found = []
        embed = ends_of(self._model)[0]
        width = next(embed.parameters()).shape[1]
        size = int(self._model.config.get_text_config().vocab_size) * len(self._read)
        several = max(1, _LOGITS // size)
        for i in range(0, len(rows), several):
            hidden = torch.stack([row[self._read] for row in rows[i : i + several]])
            given = [_giving(hidden if rest is None else (hidden, *rest)) for rest in self._rest]
            # The blocks do not look at what they are given, so that no embedding has to be there.
            given.append(_giving(hidden.new_zeros(1, hidden.shape[1], width)))
            with _standing_in([*self._blocks, embed], given):
                logits = self._model(**self._ends, use_cache=False).logits
            found.append(_values(logits, self.pack, metric))
        return np.concatenate(found)


def values_of_variants(
    model: PreTrainedModel, rows: Sequence[Row], variants: Sequence[Levels], tensors: Tensors, metric: Metric
) -> Floats:
    """The metric under each variant, (variants, prompts), prompts in the order of the rows.

    Memory: at most `_WAITING` bytes of hidden states between two blocks (of a streamed model as many as its largest
    part has), and what a block makes of a few rows.
    """
    n_layers = len(rows[0]._blocks)
    # Sorted, so that variants with the same first changes are computed together.
    order = sorted(range(len(variants)), key=lambda i: [str(variants[i].get(level)) for level in range(-1, n_layers)])
    several = at_once(model, sum(row.pack.ids.numel() for row in rows))
    found: dict[int, Floats] = {}
    with torch.inference_mode():
        for i in range(0, len(order), several):
            some = order[i : i + several]
            found |= dict(zip(some, _together(model, rows, [variants[j] for j in some], tensors, metric), strict=True))
    return np.stack([found[i] for i in range(len(variants))])


def at_once(model: PreTrainedModel, tokens: int) -> int:
    """How many variants go through the model together, on packs of so many tokens in all."""
    size = tokens * model.config.get_text_config().hidden_size * model.dtype.itemsize
    return max(1, (_FILED if is_streamed(model) else _WAITING) // size)


def _together(
    model: PreTrainedModel, rows: Sequence[Row], variants: Sequence[Levels], tensors: Tensors, metric: Metric
) -> list[Floats]:
    n_layers = len(rows[0]._blocks)
    states: dict[int, list[Tensor]] = {}  # of what differs so far: hidden states of every pack
    at = [0] * len(variants)  # which of them is each variant's
    values: dict[int, Floats] = {}
    for level in range(-1, n_layers + 1):
        ways = [(variants[i].get(level), at[i]) for i in range(len(variants))]
        after = {way: number for number, way in enumerate(dict.fromkeys(ways))}
        new: dict[int, list[Tensor]] = {number: [] for number in after.values()}
        shelf = _Shelf(max(_WAITING, model.weights.largest) if is_streamed(model) else None)
        for change in dict.fromkeys(change for change, _ in after):
            before = [state for other, state in after if other == change]
            numbers = [after[change, state] for state in before]
            with swapped(model, Swap(partial(_of, tensors, level, change), level)):
                if level < 0:
                    new[numbers[0]] = [shelf.put(row.entering()) for row in rows]
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


class _Shelf:
    """Hidden states that wait for the next block: in memory up to a bound, if there is one, beyond it in files."""

    def __init__(self, bound: int | None) -> None:
        self.bound, self.held = bound, 0
        self._room = torch.empty(0)

    def put(self, value: Tensor) -> Tensor:
        """The same values, to be kept as long as they are needed."""
        if self.bound is None or self.held + value.nbytes <= self.bound or value.device.type != "cpu":
            self.held += value.nbytes
            return value
        if len(self._room) < value.numel():
            self._room = _mapped(max(value.nbytes, _FILE), value.dtype)
        room, self._room = self._room[: value.numel()], self._room[value.numel() :]
        return room.view_as(value).copy_(value)


def _mapped(n_bytes: int, dtype: torch.dtype) -> Tensor:
    """A tensor in a file, which goes with it."""
    with TemporaryFile() as file:
        file.truncate(n_bytes)
        return torch.frombuffer(mmap(file.fileno(), n_bytes), dtype=dtype)


def _of(tensors: Tensors, level: int, change: Any) -> Mapping[str, Tensor]:
    return {} if change is None else tensors(level, change)


def _values(logits: Float[Tensor, "rows k vocab"], pack: Pack, metric: Metric) -> Floats:
    """(rows, prompts). The metric is given a prompt's logits where they belong, and 0 at all other positions."""
    columns = []
    for item, (places, indices) in zip(pack.encoded, pack.places, strict=True):
        n = max(len(item.ids), places[-1] + 1)
        whole, batch = logits.new_zeros(1, n, logits.shape[-1]), _alone(item)
        values = []
        for row in logits:
            whole[0, list(places)] = row[list(indices)]
            values.append(metric.values(whole, batch))
        columns.append(torch.cat(values))
    return torch.stack(columns, 1).double().cpu().numpy()


def _alone(item: Encoded) -> Batch:
    ids = torch.tensor([item.ids])
    return Batch((item,), ids, torch.ones_like(ids))


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs[_HIDDEN]
    return hidden


def _giving(output: Any) -> Callable[..., Any]:
    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return output

    return forward


def _unchanged(rest: tuple[Any, ...] | None, *args: Any, **kwargs: Any) -> Any:
    hidden = _hidden(args, kwargs)
    return hidden if rest is None else (hidden, *rest)


def _holds_tensors(rest: tuple[Any, ...] | None) -> bool:
    return rest is not None and any(value is not None for value in rest)


class _ReachedError(Exception):
    """The forward pass has come as far as it is needed."""


@contextmanager
def _standing_in(blocks: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """These functions in place of the blocks' forwards."""
    kept = [block.__dict__.get("forward") for block in blocks]  # accelerate may have set one
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        yield
    finally:
        for block, before in zip(blocks, kept, strict=True):
            if before is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = before
