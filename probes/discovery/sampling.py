"""How models go on with a text: sampled, with the same random numbers for each, so that models alike say alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tv.evaluation.greedy import groups_of
from tv.runtime.seeds import seed_of
from tv.runtime.transformers_private import grows

#: Rows that are continued at once.
_TOGETHER = 64


@dataclass(frozen=True)
class Beginning:
    """What is continued, and by which random numbers."""

    key: str
    ids: tuple[int, ...]


@dataclass
class Writer:
    """Models whose logits are added up, each times its weight, to choose the next token.

    One model of weight 1 writes as it is. Two, at 1 + α and −α, are one amplified against the other.
    """

    models: Sequence[tuple[PreTrainedModel, float]]
    around: Callable[[], Any] | None = None  # a context in which they write: with a vector added to their states, say
    _caches: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        """Forget what was read."""
        self._caches = [None] * len(self.models)

    def read(self, ids: Int[Tensor, "rows pos"], seen: int) -> tuple[Float[Tensor, "rows vocab"], int]:
        """The logits behind the last of these tokens, of which `seen` are read already; and how many are now."""
        total: Tensor | None = None
        held = ids.shape[1]
        for i, (model, weight) in enumerate(self.models):
            if self._caches[i] is None:
                last, self._caches[i] = _begun(model, ids)
            else:
                mask, kept = torch.ones_like(ids), self._caches[i]
                out = model(input_ids=ids[:, seen:], attention_mask=mask, use_cache=True, past_key_values=kept)
                last, self._caches[i] = out.logits[:, -1], getattr(out, "past_key_values", None)
            logits = last.float() * weight
            total = logits if total is None else total[:, : logits.shape[1]] + logits[:, : total.shape[1]]
            held = held if self._caches[i] is not None else 0
        assert total is not None
        return total, held


def _begun(model: PreTrainedModel, ids: Int[Tensor, "rows pos"]) -> tuple[Float[Tensor, "rows vocab"], Any]:
    """The logits behind the last token, and what the model keeps of all. Rows that are alike are read once."""
    some, rows = ids.unique(dim=0, return_inverse=True)
    last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    out = model(input_ids=some, attention_mask=torch.ones_like(some), use_cache=True, **last)
    kept = getattr(out, "past_key_values", None)
    if isinstance(kept, DynamicCache) and all(map(grows, kept.layers)):
        kept.batch_select_indices(rows)
    elif kept is not None:  # a cache that cannot be spread over rows, nor put in their order
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **last)
        return out.logits[:, -1], getattr(out, "past_key_values", None)
    return out.logits[:, -1][rows], kept


@torch.inference_mode()
def continued(
    writer: Writer, beginnings: Sequence[Beginning], tokens: int, *, seed: int, ends: Collection[int] = ()
) -> list[tuple[int, ...]]:
    """`tokens` tokens after every beginning, at temperature 1, in the order given; fewer where a text ends.

    Of equal logits every writer makes the same choices, because a beginning's random numbers are drawn from its key.
    """
    found: dict[int, tuple[int, ...]] = {}
    for group in groups_of([item.ids for item in beginnings], tokens, _TOGETHER):
        some = [beginnings[i] for i in group]
        found |= dict(zip(group, _continued(writer, some, tokens, seed, ends), strict=True))
    return [found[i] for i in range(len(beginnings))]


def _continued(
    writer: Writer, some: Sequence[Beginning], tokens: int, seed: int, ends: Collection[int]
) -> list[tuple[int, ...]]:
    device = writer.models[0][0].device
    lengths = torch.tensor([len(item.ids) for item in some], device=device)
    shortest, longest = int(lengths.min()), int(lengths.max())
    ids = torch.zeros(len(some), longest + tokens, dtype=torch.long, device=device)
    for row, item in zip(ids, some, strict=True):
        row[: len(item.ids)] = torch.tensor(item.ids)
    noises = [torch.Generator().manual_seed(seed_of(f"say {seed} {item.key}")) for item in some]
    stops, ending = lengths + tokens, torch.tensor(sorted(ends), dtype=torch.long, device=device)
    writer.begin()
    seen = 0
    for pos in range(shortest - 1, longest + tokens - 1):
        logits, seen = writer.read(ids[:, : pos + 1], seen)
        free = (pos + 1 >= lengths) & (pos + 1 < stops)
        for row in free.nonzero()[:, 0].tolist():
            # The largest of logits plus Gumbel noise is a draw from the softmax.
            uniform = torch.rand(logits.shape[1], generator=noises[row]).clamp_(1e-20, 1 - 1e-7).to(device)
            ids[row, pos + 1] = (logits[row] - (-uniform.log()).log()).argmax()
        stops = torch.where(free & torch.isin(ids[:, pos + 1], ending), pos + 2, stops)
        if bool((stops <= pos + 2).all()):
            break
    return [
        tuple(row[length:stop].tolist())
        for row, length, stop in zip(ids, lengths.tolist(), stops.tolist(), strict=True)
    ]
