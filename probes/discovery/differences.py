"""Δh of a side at kinds of place: its mean by depth and by group of texts, and how a lens reads such a mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from probes.discovery.observing import CHOOSE, MEASURE, Seen, group_of
from probes.discovery.sides import Side
from probes.discovery.word_lists import TOP
from probes.measures.logit_lens import Reader
from tv.stats.means import mean_interval

Floats = NDArray[np.float64]
Means = Float[Tensor, "depth d_model"]
Scores = Float[Tensor, "depth vocab"]

#: The first tokens of a text, a BOS not counted.
FIRST = 5
#: Tokens with at least so many of their text before them are far.
FAR = 8
#: Groups of texts in each half, which intervals leave out one by one.
GROUPS = 16
#: Depths that are read: all of a small model's, an even choice of a large one's.
_DEPTHS = 9


def read_at(n_layers: int) -> list[int]:
    """The depths that are read, 0 (what enters the first block) to `n_layers`, with the middle one.

    Examples:
        >>> read_at(6)
        [0, 1, 2, 3, 4, 5, 6]
        >>> len(read_at(80)), 40 in read_at(80)
        (9, True)
    """
    n = min(_DEPTHS, n_layers + 1)
    return sorted({round(i * n_layers / (n - 1)) for i in range(n)} | {middle(n_layers)})


def middle(n_layers: int) -> int:
    """The depth with half of the blocks below it."""
    return n_layers // 2


def places(seen: Seen, bos: int | None) -> dict[str, Bool[Tensor, " n"]]:
    """By kind of place, which tokens are there: `first` and `far` leave a BOS out, `bos` is it alone."""
    has_bos = torch.tensor([item.ids[0] == bos for item in seen.encoded])[seen.text]
    return kinds_of_place(seen.pos - has_bos.long())


def kinds_of_place(own: Any) -> dict[str, Any]:
    """The same of positions, a number or a tensor, that do not count a BOS."""
    return {"first": (own >= 0) & (own < FIRST), "bos": own < 0, "far": own >= FAR}


@dataclass
class Sums:
    """Over the tokens at one kind of place; the first axis are the halves, the second groups of texts in each."""

    apart: Float[Tensor, "halves groups depth d_model"]
    n: Float[Tensor, "halves groups"]
    length: Float[Tensor, " depth"]  # of ‖Δh‖
    base: Float[Tensor, " depth"]  # of ‖h‖ of the base

    @classmethod
    def none(cls, depth: int, d_model: int) -> Sums:
        """No token yet."""
        zeros = torch.zeros
        return cls(zeros(2, GROUPS, depth, d_model), zeros(2, GROUPS), zeros(depth), zeros(depth))

    @property
    def in_both(self) -> bool:
        """Whether both halves have such tokens."""
        return bool((self.n.sum(1) > 0).all())

    def mean(self, half: int) -> Means:
        """Mean Δh over the tokens of a half."""
        return self.apart[half].sum(0) / self.n[half].sum()

    def both(self) -> Means:
        """Mean Δh over all tokens."""
        return self.apart.sum((0, 1)) / self.n.sum()

    def without(self, half: int) -> list[Means]:
        """The mean of a half without one of its groups, for every group that has tokens."""
        apart, n = self.apart[half], self.n[half]
        left = (n > 0) & (n < n.sum())
        return [(apart.sum(0) - apart[i]) / (n.sum() - n[i]) for i in left.nonzero()[:, 0].tolist()]

    @property
    def usual(self) -> Float[Tensor, " depth"]:
        """The base's mean ‖h‖ there."""
        return self.base / self.n.sum()

    def size(self) -> Float[Tensor, " depth"]:
        """The length of the mean: of what both halves have in common, so that the noise of neither counts."""
        return (self.mean(CHOOSE) * self.mean(MEASURE)).sum(1).clamp(min=0).sqrt()


def add(sums: dict[str, Sums], seen: Seen, bos: int | None) -> None:
    """A batch's tokens, by kind of place."""
    base, other = seen.base.resid.cpu(), seen.other.resid.cpu()
    apart = other - base
    depth, _, d_model = apart.shape
    groups = torch.tensor(
        [half * GROUPS + group_of(item, GROUPS) for half, item in zip(seen.halves, seen.encoded, strict=True)]
    )
    for name, which in places(seen, bos).items():
        if not bool(which.any()):
            continue
        own = sums.setdefault(name, Sums.none(depth, d_model))
        group = groups[seen.text][which]
        own.apart.flatten(0, 1).index_add_(0, group, apart[:, which].transpose(0, 1))
        own.n.flatten().index_add_(0, group, torch.ones(len(group)))
        own.length += apart[:, which].norm(dim=2).sum(1)
        own.base += base[:, which].norm(dim=2).sum(1)


@dataclass
class Differences:
    """Δh of the side that is seen, on the texts of the nulls: summed up once for all parts that ask."""

    bos: int | None
    sums: dict[str, Sums] = field(default_factory=dict)
    _side: Side | None = None
    _last: ref[Seen] | None = None  # which keeps no batch in memory

    def see(self, side: Side, seen: Seen) -> None:
        """A batch under a side; the same one again adds nothing."""
        if side != self._side:
            self.sums, self._side = {}, side
        if seen.in_null and (self._last is None or self._last() is not seen):
            add(self.sums, seen, self.bos)
        self._last = ref(seen)


def lens(reader: Reader, means: Means, vocab: int) -> Scores:
    """The logits that a reader gives of a difference, as if it were a model's last state."""
    with torch.inference_mode():
        return reader.logits(means)[:, :vocab].cpu()


@torch.inference_mode()
def logits_of(
    reader: Reader, means: Float[Tensor, "... depth d_model"], size: Float[Tensor, " depth"], vocab: int
) -> Float[Tensor, "... depth vocab"]:
    """By how much Δh moves the logits of a state of this size, less their mean over the vocabulary.

    A bias of the final norm or of the unembedding is no part of Δh: what the lens says of nothing is taken off. However
    many means there are, the unembedding is read once.
    """
    flat = means.flatten(0, -2)
    logits = lens(reader, torch.cat([flat, torch.zeros_like(flat[:1])]), vocab)
    apart = logits[:-1].sub_(logits[-1:])
    apart -= apart.mean(1, keepdim=True)
    apart *= (means.norm(dim=-1) / size.clamp(min=1e-30)).flatten()[:, None]
    return apart.view(*means.shape[:-1], -1)


def on_one_scale(logits: Float[Tensor, "... depth vocab"]) -> Float[Tensor, "... depth vocab"]:
    """In standard deviations over the vocabulary, of the depth where these are largest.

    So a depth counts for as much as its logits move, and a vector that is longer at all depths scores no higher.
    """
    return logits / logits.std(-1).amax(-1).clamp(min=1e-30)[..., None, None]


def standardised(scores: Scores) -> Scores:
    """Less the mean over the vocabulary, in its standard deviations, every depth by itself."""
    return (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True).clamp(min=1e-30)


def chosen_of(scores: Scores, top: int = TOP) -> tuple[Tensor, Tensor]:
    """The tokens with the largest score at any depth, and the rows of these depths."""
    best, depth = scores.max(0)
    ids = best.topk(min(top, len(best))).indices
    return ids, depth[ids]


def jackknifed(value: Floats, without: list[Floats]) -> tuple[Floats, Floats, Floats]:
    """(value, lo, hi) of a function of all texts, from its values without one group of them each.

    Source: J. W. Tukey (1958), Bias and confidence in not-quite large samples; its pseudo-values, around the value.
    """
    n = len(without)
    if n < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    pseudo = n * value - (n - 1) * np.stack(without)
    mean, lo, hi, *_ = mean_interval(pseudo)
    return value, value + (lo - mean), value + (hi - mean)


def largest(by_side: Mapping[str, list[Floats]], name: str, like: Floats) -> Floats:
    """The largest of the draws of a control, or NaN without one."""
    draws = by_side.get(name)
    return np.max(draws, 0) if draws else np.full_like(like, np.nan)


Vary = Callable[[Means], Means]
