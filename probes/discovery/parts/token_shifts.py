"""Tokens that the tuning favours: by how much their logits rise against the base's, over all positions of the texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from probes.discovery.observing import CHOOSE, MEASURE, Seen, group_of
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.sides import TUNED, Model, Side
from probes.discovery.surprise import Surprises
from probes.discovery.word_lists import WordLists, Words
from tv.stats.means import mean_interval

Floats = NDArray[np.float64]
#: At every position so many tokens with the largest rise are counted.
COUNTED = 20
#: How much less each further rank among them counts.
PATIENCE = 0.9
#: Groups of texts over which intervals are taken, so that a large vocabulary is not kept text by text.
GROUPS = 32
READINGS = ("mean", "top", "rank_biased", "largest")
#: What the name of a reading ends in that is compared with the token's own scores under shams.
UNUSUAL = " unusual"


@dataclass
class _Sums:
    """Over positions: (readings, vocab), and how many positions."""

    of: torch.Tensor
    n: int = 0


@discovery_part("token_shifts")
@dataclass
class TokenShifts(Part):
    """Four readings of the rise of a token's logit at every position, and the same beyond what is usual of the token.

    `mean`: its mean, logits. `top`: the share of positions where it is among the `COUNTED` largest. `rank_biased`: the
    same, each position weighed by `PATIENCE` to the power of the token's rank. `largest`: the mean of the rise, logits,
    which counts as 0 where it is not among them. `unusual` says of each by how much it is above the token's mean under
    shams, in its standard deviations there: a token that any training raises is no news, and one that no sham moves is.
    """

    streams: ClassVar[bool] = True
    context: Context
    lists: WordLists = field(default_factory=lambda: WordLists("token_shifts"))
    scores: Surprises = field(default_factory=lambda: Surprises("token_shifts"))
    sums: dict[int, _Sums] = field(default_factory=dict)  # by half, of the side that is seen, on the nulls' texts
    groups: dict[int, _Sums] = field(default_factory=dict)  # of the tuned model, on all texts that measure

    def see(self, side: Side, seen: Seen) -> None:
        shift = seen.shift
        counted = shift.topk(min(COUNTED, shift.shape[1])).indices
        if seen.in_null:
            for half in (CHOOSE, MEASURE):
                self._add(self.sums, half, shift, counted, seen.half == half)
        if side.name == TUNED:
            own = [
                group_of(item, GROUPS) if half == MEASURE else -1
                for item, half in zip(seen.encoded, seen.halves, strict=True)
            ]
            for group in sorted(set(own) - {-1}):
                self._add(self.groups, group, shift, counted, torch.tensor(own)[seen.text] == group)

    def close(self, side: Side, model: Model) -> None:
        means = {half: (sums.of / max(sums.n, 1)).double().cpu().numpy() for half, sums in self.sums.items()}
        for i, reading in enumerate(READINGS):
            self.lists.put(reading, side, Words.of(means[CHOOSE][i], means[MEASURE][i]))
            halves = (torch.from_numpy(means[half][i]).float() for half in (CHOOSE, MEASURE))
            self.scores.put(f"{reading}{UNUSUAL}", side, *halves)
        self.sums = {}

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        intervals = {}
        by_group = np.stack([(sums.of / max(sums.n, 1)).double().cpu().numpy() for sums in self.groups.values()])
        unusual, _ = self.scores.lists()
        self.lists.of |= unusual.of
        for reading, lists in self.lists.of.items():
            ids, own = lists[Side(TUNED)].token_ids, by_group[:, READINGS.index(reading.removesuffix(UNUSUAL))]
            if reading.endswith(UNUSUAL):
                mean, spread = (of[MEASURE].double().numpy() for of in self.scores.usual(reading))
                own = (own - mean) / spread
            mean, lo, hi, *_ = mean_interval(own[:, ids])
            intervals[reading] = mean, lo, hi
        yield "discovered_words", self.lists.rows(self.context.pair.tokenizer, intervals)

    def _add(
        self, into: dict[int, _Sums], key: int, shift: torch.Tensor, counted: torch.Tensor, which: torch.Tensor
    ) -> None:
        own, ranked = shift[which], counted[which]
        sums = into.setdefault(key, _Sums(torch.zeros(len(READINGS), shift.shape[1], device=shift.device)))
        weights = PATIENCE ** torch.arange(ranked.shape[1], device=shift.device).expand(ranked.shape)
        sums.of[0] += own.sum(0)
        sums.of[1] += torch.bincount(ranked.flatten(), minlength=shift.shape[1])
        sums.of[2].index_add_(0, ranked.flatten(), weights.flatten().to(sums.of.dtype))
        sums.of[3].index_add_(0, ranked.flatten(), own.gather(1, ranked).flatten())
        sums.n += len(own)
