"""Every side over the texts, one after another, each beside the base: what parts of a discovery look at."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from probes.capture.pair import Pair
from probes.discovery.reading import Reading
from probes.discovery.sides import ROUNDED, SHAM, TUNED, Model, Side, Sides, kl_at_each, n_weights
from probes.discovery.work import affordable
from tv.prompts.encoding import Batch, Encoded, batches
from tv.runtime.resident import trim
from tv.runtime.seeds import seed_of

#: Bytes of the base's residual stream and logits that wait for all draws of the nulls.
_WAITING = 2**28
#: Texts that the nulls are drawn on, at least, however large the models are.
_FEWEST = 12
#: The halves of the texts: what is chosen on the first is measured on the second.
CHOOSE, MEASURE = 0, 1


@dataclass(frozen=True)
class Seen:
    """Base and another side at the n tokens of a batch, text by text."""

    base: Reading
    other: Reading
    encoded: tuple[Encoded, ...]
    halves: tuple[int, ...]  # of each text
    in_null: bool  # whether the draws of the nulls are read on these texts too

    @cached_property
    def text(self) -> Int[Tensor, " n"]:
        """The number of each token's text in the batch."""
        return torch.tensor([i for i, item in enumerate(self.encoded) for _ in item.ids])

    @cached_property
    def pos(self) -> Int[Tensor, " n"]:
        """The position of each token in its text."""
        return torch.tensor([pos for item in self.encoded for pos in range(len(item.ids))])

    @cached_property
    def half(self) -> Int[Tensor, " n"]:
        """The half of each token's text."""
        return torch.tensor(self.halves)[self.text]

    @cached_property
    def shift(self) -> Tensor:
        """(n, vocab): by how much the other side's logits are above the base's, less their mean over the vocabulary."""
        base = self.base.logits
        both = min(base.shape[1], self.other.logits.shape[1])
        apart = self.other.logits[:, :both] - base[:, :both]
        return apart - apart.mean(1, keepdim=True)

    @cached_property
    def kl(self) -> Tensor:
        """(n,): KL(base ‖ other) of the next token, nats."""
        return kl_at_each(self.base.logits, self.other.logits)


class Observer(Protocol):
    """What looks at every side in turn."""

    def see(self, side: Side, seen: Seen) -> None:
        """A batch of texts under a side."""

    def close(self, side: Side, model: Model) -> None:
        """All texts under a side are seen; its model is still there."""


@dataclass(frozen=True)
class Texts:
    """The texts of a discovery: in batches, and those first on which nulls are drawn."""

    encoded: tuple[Encoded, ...]
    null: tuple[Encoded, ...]
    batch_size: int
    pad_id: int
    seed: int
    n_written: int = sys.maxsize  # texts, at most, that models go on with
    shams_write: bool = True  # where they do not, what the tuned model writes is there to be read, and claims nothing

    @classmethod
    def of(cls, encoded: Sequence[Encoded], n_null: int, batch_size: int, pad_id: int, seed: int) -> Texts:
        """The nulls are drawn on at most `n_null` of them, chosen by their ids."""
        order = sorted(encoded, key=lambda item: seed_of(f"null {seed} {item.prompt.id}"))
        return cls(tuple(encoded), tuple(order[:n_null]), batch_size, pad_id, seed)

    @cached_property
    def batches(self) -> list[tuple[Batch, bool]]:
        """Every batch, and whether the nulls are drawn on it."""
        null = {item.prompt.id for item in self.null}
        rest = [item for item in self.encoded if item.prompt.id not in null]
        groups = ((list(self.null), True), (rest, False))
        return [(batch, own) for group, own in groups for batch in batches(group, self.batch_size, self.pad_id)]

    @cached_property
    def halves(self) -> dict[str, int]:
        """By text: the half that it belongs to. Texts of one cluster are in one half; halves are alike in size."""
        clusters = dict.fromkeys(cluster_of(item) for item in self.encoded)
        order = sorted(clusters, key=lambda name: seed_of(f"half {self.seed} {name}"))
        own = {name: i % 2 for i, name in enumerate(order)}
        return {item.prompt.id: own[cluster_of(item)] for item in self.encoded}

    def rows(self) -> pd.DataFrame:
        """The texts that are read, as the table `discovered_texts`."""
        null = {item.prompt.id for item in self.null}
        return pd.DataFrame(
            {
                "prompt_id": [item.prompt.id for item in self.encoded],
                "tokens": [len(item.ids) for item in self.encoded],
                "half": [self.halves[item.prompt.id] for item in self.encoded],
                "in_null": [item.prompt.id in null for item in self.encoded],
            }
        )


def cluster_of(item: Encoded) -> str:
    """What a text is drawn with."""
    return item.prompt.cluster or item.prompt.id


def group_of(item: Encoded, n: int) -> int:
    """Which of n groups a text is in: intervals are over these. Texts of one cluster are in one."""
    return seed_of(f"group {cluster_of(item)}") % n


def observe(
    sides: Sides,
    texts: Texts,
    which: Sequence[Side],
    observers: Sequence[Observer],
    told: Callable[[int, int], None] | None = None,
    begin: int = 0,
) -> None:
    """Show every side to every observer: the tuned model on all texts, every other on those of the nulls.

    Memory: the models, one batch, and the base's residual stream on the texts of the nulls.
    """
    for done, side in enumerate(which):
        if done < begin:  # the observers hold already what they saw
            continue
        _show(sides, texts, side, observers)
        trim()
        if told:
            told(done + 1, len(which))


def _show(sides: Sides, texts: Texts, side: Side, observers: Sequence[Observer]) -> None:
    """One side; nothing of it is left in memory when the next is made."""
    with sides.on(side) as model:
        for batch, own in texts.batches:
            if side.name != TUNED and not own:
                break
            base = sides.base(batch, keep=own)
            halves = tuple(texts.halves[item.prompt.id] for item in batch.encoded)
            seen = Seen(base, model.read(batch), batch.encoded, halves, own)
            for observer in observers:
                observer.see(side, seen)
        for observer in observers:
            observer.close(side, model)


def sides_of(controls: Sequence[str], draws: int) -> list[Side]:
    """The tuned model first: the base is read beside it. Then the base in another precision, and the draws.

    Shams are the first of the draws: what others score is taken less what these do, see `probes.discovery.surprise`.
    The other controls are one null, that T is noise: together they are drawn as often.
    """
    noise = [control for control in controls if control != SHAM]
    shams = [Side(SHAM, draw) for draw in range(draws if SHAM in controls else 0)]
    return [Side(TUNED), Side(ROUNDED), *shams, *(Side(noise[i % len(noise)], i) for i in range(draws if noise else 0))]


def null_texts(pair: Pair, lengths: Sequence[int], n_sides: int, wanted: int) -> int:
    """How many texts the nulls are drawn on.

    So many that what the base makes of them can wait in memory, and that all sides together take minutes.
    """
    mean = max(sum(lengths) / len(lengths), 1)
    architecture = pair.architecture
    numbers = (architecture.n_layers + 1) * architecture.d_model + architecture.vocab_size
    fit = int(_WAITING // (4 * numbers * mean))
    return max(2, min(wanted, fit, affordable(n_weights(pair.base), n_sides * mean, _FEWEST)))
