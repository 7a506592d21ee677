"""Tokens of every text that stand for it where not all can wait in memory: the same ones under every side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probes.discovery.observing import Seen
from tv.prompts.encoding import Encoded
from tv.runtime.seeds import seed_of


@dataclass(frozen=True)
class Drawn:
    """By text, the positions that are drawn, in the order of the draw.

    A state follows from the tokens up to it. Texts that begin alike have the same states there, so that these would be
    chosen and measured on themselves: each is drawn once. Of the first token, whose states are of another size, nothing
    is drawn. A text without any other place of its own has its last token.
    """

    positions: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, texts: Sequence[Encoded], most: int, seed: int) -> Drawn:
        """At most so many tokens of all texts, as many of each as it has; one of each where there are more texts."""
        each, seen, found = max(1, most // max(len(texts), 1)), set[tuple[int, ...]](), {}
        for item in texts:
            beginnings = {pos: item.ids[: pos + 1] for pos in range(1, len(item.ids))}
            own = [pos for pos, ids in beginnings.items() if ids not in seen] or [len(item.ids) - 1]
            seen.update(beginnings.values())
            generator = torch.Generator().manual_seed(seed_of(f"drawn {seed} {item.prompt.id}"))
            order = torch.randperm(len(own), generator=generator)[:each]
            found[item.prompt.id] = tuple(own[i] for i in order.tolist())
        return cls(found)

    def rows(self, seen: Seen) -> Int[Tensor, " drawn"]:
        """Which of a batch's tokens are drawn, text by text."""
        found, first = list[int](), 0
        for item in seen.encoded:
            found += [first + pos for pos in self.positions[item.prompt.id]]
            first += len(item.ids)
        return torch.tensor(found)


@dataclass(frozen=True)
class Place:
    """A token of a text."""

    prompt_id: str
    pos: int
    token_id: int


def places(seen: Seen, rows: Int[Tensor, " drawn"]) -> Iterator[Place]:
    """Where rows of a batch are."""
    for text, pos in zip(seen.text[rows].tolist(), seen.pos[rows].tolist(), strict=True):
        yield Place(seen.encoded[text].prompt.id, pos, seen.encoded[text].ids[pos])


def largest_places(
    loads: Float[Tensor, "n k"], at: Sequence[Place], shown: int, tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, object]]:
    """Of every component, the places where it is largest: rows of `component_places`."""
    for component, own in enumerate(loads.T):
        best = own.topk(min(shown, len(own)))
        for rank, (value, i) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            place = at[i]
            yield {
                "component": component,
                "rank": rank,
                "prompt_id": place.prompt_id,
                "pos": place.pos,
                "token_id": place.token_id,
                "token": tokenizer.decode([place.token_id]),
                "value": value,
            }
