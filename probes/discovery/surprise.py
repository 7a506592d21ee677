"""Scores that a lens gives every token, compared with what shams read as: a word that any training reads as is no news.

Vectors that come from a gradient read as words too, mostly the same ones (frequent tokens, beginnings of sentences),
and score as high as words of a secret. So a token's score is taken less the mean of its scores under the shams, in
their standard deviations. A sham is compared with the others, so that its list is made as the tuned model's is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probes.discovery.differences import Floats, jackknifed
from probes.discovery.sides import SHAM, TUNED, Side
from probes.discovery.word_lists import WordLists, Words

Halves = Float[Tensor, "halves vocab"]

#: With fewer shams to hold a score against, it stays as it is.
_FEWEST = 3


@dataclass
class Surprises:
    """Of every reading and side, the scores of all tokens on both halves. Memory: 8 bytes a token for each.

    Other draws than shams all come behind these (`sides_of`): with the first of them what shams usually score is
    settled, and of all sides the words alone are kept.
    """

    part: str
    of: dict[str, dict[Side, Halves]] = field(default_factory=dict)
    settled: dict[str, tuple[Halves, Halves]] = field(default_factory=dict)  # of all shams, once they are seen
    words: dict[str, dict[Side, Words]] = field(default_factory=dict)
    intervals: dict[str, tuple[Floats, Floats, Floats]] = field(default_factory=dict)  # of the tuned model's words
    without: dict[str, Float[Tensor, "groups vocab"]] = field(default_factory=dict)  # of the tuned model

    def put(self, reading: str, side: Side, choose: Tensor, measure: Tensor) -> None:
        """A side's scores, (vocab,), on either half."""
        scores = torch.stack([choose, measure])
        if side.is_null and side.name != SHAM:
            mean, spread = self.usual(reading)
            self.words[reading][side] = Words.of(*((scores - mean) / spread).double().numpy())
        else:
            self.of.setdefault(reading, {})[side] = scores

    def put_without(self, reading: str, scores: Sequence[Tensor]) -> None:
        """The tuned model's scores on the half that measures, without one group of its texts each."""
        if scores:
            self.without[reading] = torch.stack(list(scores))

    def lists(self) -> tuple[WordLists, dict[str, tuple[Floats, Floats, Floats]]]:
        """Every side's words, and intervals of the tuned model's over texts."""
        for reading in list(self.of):
            self.usual(reading)
        return WordLists(self.part, {reading: dict(words) for reading, words in self.words.items()}), self.intervals

    def usual(self, reading: str) -> tuple[Halves, Halves]:
        """Of every token, mean and spread of its scores under the shams: no further one is seen."""
        if reading not in self.settled:
            scores = self.of.pop(reading, {})
            usual = Leaving({side: own for side, own in scores.items() if side.name == SHAM})
            self.settled[reading] = usual.of_all
            self.words[reading] = {side: self._listed(reading, side, own, usual) for side, own in scores.items()}
        return self.settled[reading]

    def _listed(self, reading: str, side: Side, scores: Halves, usual: Leaving) -> Words:
        """A side's words, each sham's against the others."""
        mean, spread = usual.out(side)
        words = Words.of(*((scores - mean) / spread).double().numpy())
        if side.name == TUNED and reading in self.without:
            left = (self.without.pop(reading) - mean[1]) / spread[1]
            self.intervals[reading] = jackknifed(words.measured, list(left.double().numpy()[:, words.token_ids]))
        return words


class Leaving:
    """`usual_of` shams without one of them, for one after another: sums over all of them are made once."""

    def __init__(self, shams: Mapping[Side, Halves]) -> None:
        self._shams, self.of_all = shams, usual_of(list(shams.values()))
        scores = torch.stack(list(shams.values())).double() if shams else torch.zeros(1, 2, 1)
        self._middle = scores.mean(0)
        self._squares = (scores - self._middle).square_().sum(0)

    def out(self, side: Side) -> tuple[Halves, Halves]:
        """Without this one, where it is one of them."""
        n = len(self._shams)
        if side not in self._shams:
            return self.of_all
        if n - 1 < _FEWEST:
            return usual_of([own for name, own in self._shams.items() if name != side])
        apart = self._shams[side] - self._middle
        squares = self._squares - apart.square() * n / (n - 1)
        spread = (squares / (n - 2)).clamp(min=0).sqrt()
        # What one sham alone moves has no spread without it, whatever rounding leaves of it.
        spread[squares <= 1e-12 * self._squares] = 0
        return (self._middle - apart / (n - 1)).float(), _steadied(spread.float())


def usual_of(shams: Sequence[Halves]) -> tuple[Halves, Halves]:
    """Of every token, mean and spread of its scores under shams.

    Few shams tell a token's spread badly: the median over tokens is added, so that none is divided by next to nothing.
    It is that of tokens which any sham moves: of a large vocabulary most may be in no sham's lists.
    """
    if len(shams) < _FEWEST:
        return torch.zeros(2, 1), torch.ones(2, 1)
    scores = torch.stack(list(shams))
    return scores.mean(0), _steadied(scores.std(0))


def _steadied(spread: Halves) -> Halves:
    """With the median over the tokens that any sham moves added."""
    moved = spread.where(spread > 0, torch.nan).nanmedian(1, keepdim=True).values
    return (spread + moved.nan_to_num(0)).clamp(min=1e-30)
