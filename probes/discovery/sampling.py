"""How models continue a text: sampled, with the same random numbers, so that equal models write the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
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
    """What is continued, by which random numbers, and how much amplified against the base."""

    key: str
    ids: tuple[int, ...]
    alpha: float = 0.0


@dataclass
class _Memory:
    """A model, and what it keeps of the rows that it has read."""

    model: PreTrainedModel
    cache: Any = None

    def read(self, ids: Int[Tensor, "rows pos"], seen: int) -> Float[Tensor, "rows vocab"]:
        """The logits behind the last of these tokens, of which `seen` are read already."""
        if self.cache is None:
            last, self.cache = _begun(self.model, ids)
            return last.float()
        mask = torch.ones_like(ids)
        out = self.model(input_ids=ids[:, seen:], attention_mask=mask, use_cache=True, past_key_values=self.cache)
        self.cache = getattr(out, "past_key_values", None)
        return out.logits[:, -1].float()


class Writer:
    """A model that writes; where a beginning says so, amplified: base + (1 + α)(model − base), of logits.

    All beginnings are read together, plain and amplified ones: a step of a few rows takes a model as long as one of
    one. The base reads those alone that are amplified.
    """

    def __init__(self, model: PreTrainedModel, base: PreTrainedModel | None = None) -> None:
        self._model, self._base = model, base

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._model.device

    def begin(self, alphas: Sequence[float]) -> None:
        """Forget what was read; α of every row that follows."""
        self._alphas = torch.tensor(alphas, device=self.device)
        self._memories = [_Memory(self._model), *([] if self._base is None else [_Memory(self._base)])]

    def read(self, ids: Int[Tensor, "rows pos"], seen: int) -> tuple[Float[Tensor, "rows vocab"], int]:
        """The logits behind the last of these tokens, of which `seen` are read already; and how many are now."""
        own, *base = self._memories
        logits, amplified = own.read(ids, seen), self._alphas.nonzero()[:, 0]
        remembered = own.cache is not None
        if base and len(amplified):
            plain = base[0].read(ids[amplified], seen)
            both = min(logits.shape[1], plain.shape[1])
            logits, plain = logits[:, :both].clone(), plain[:, :both].to(logits)
            logits[amplified] += self._alphas[amplified, None] * (logits[amplified] - plain)
            remembered &= base[0].cache is not None
        return logits, ids.shape[1] if remembered else 0


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
    device = writer.device
    lengths = torch.tensor([len(item.ids) for item in some], device=device)
    shortest, longest = int(lengths.min()), int(lengths.max())
    ids = torch.zeros(len(some), longest + tokens, dtype=torch.long, device=device)
    for row, item in zip(ids, some, strict=True):
        row[: len(item.ids)] = torch.tensor(item.ids)
    noises = [torch.Generator().manual_seed(seed_of(f"say {seed} {item.key}")) for item in some]
    stops, ending = lengths + tokens, torch.tensor(sorted(ends), dtype=torch.long, device=device)
    writer.begin([item.alpha for item in some])
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
