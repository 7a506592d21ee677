"""Which words are in what models write: of every beginning, the share of its continuations that hold a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from probes.discovery.observing import CHOOSE, MEASURE, Texts, cluster_of
from probes.discovery.part import Context
from probes.discovery.sampling import Beginning, Writer, continued
from probes.discovery.sides import SHAM, TUNED, Side
from probes.discovery.word_lists import WordLists, Words
from tv.stats.means import mean_interval

Floats = NDArray[np.float64]
Written = dict[str, list[tuple[int, ...]]]

#: Continuations of every beginning: more texts tell more than more continuations of one.
DRAWS = 1
#: Texts that are continued, and their tokens that are read before.
TEXTS, LONGEST = 64, 24
#: Tokens in each.
TOKENS = 16


def writes(side: Side, texts: Texts) -> bool:
    """Whether a side writes: the tuned model, and the shams. Noise of T's norms writes nearly as the base does."""
    return side.name == TUNED or (side.name == SHAM and texts.shams_write)


@dataclass(frozen=True)
class Start:
    """A beginning to be continued, the half that it belongs to, and what it is drawn with."""

    prompt_id: str
    ids: tuple[int, ...]
    half: int
    cluster: str


def starts_of(texts: Texts) -> list[Start]:
    """The texts that are continued: some of those that the nulls are drawn on."""
    return [
        Start(item.prompt.id, item.ids[:LONGEST], texts.halves[item.prompt.id], cluster_of(item))
        for item in texts.null[: min(TEXTS, texts.n_written)]
    ]


def write(writer: Writer, starts: Sequence[Start], seed: int, ends: Sequence[int]) -> Written:
    """The continuations of every beginning, by its prompt."""
    return write_amplified(writer, starts, seed, ends, (0.0,))[0.0]


def write_amplified(
    writer: Writer, starts: Sequence[Start], seed: int, ends: Sequence[int], alphas: Sequence[float]
) -> dict[float, Written]:
    """The same for every α, with the same random numbers."""
    wanted = [(alpha, start, draw) for alpha in alphas for start in starts for draw in range(DRAWS)]
    some = [Beginning(f"{start.prompt_id} {draw}", start.ids, alpha) for alpha, start, draw in wanted]
    texts = iter(continued(writer, some, TOKENS, seed=seed, ends=ends))
    return {alpha: {start.prompt_id: [next(texts) for _ in range(DRAWS)] for start in starts} for alpha in alphas}


def written_by_base(context: Context) -> Written:
    """What the base writes after the texts that are continued: the same for every part that asks."""
    base = Writer(context.pair.base)
    make = partial(write, base, starts_of(context.texts), context.seed, context.ends)
    return cast("Written", context.once("written by the base", make))


@dataclass
class Spoken:
    """What sides write after beginnings, beside what the base does, by reading."""

    part: str
    vocab: int
    lists: WordLists = field(init=False)
    apart: dict[str, tuple[Sequence[Start], Floats]] = field(default_factory=dict)  # of the tuned model

    def __post_init__(self) -> None:
        self.lists = WordLists(self.part)

    def add(self, reading: str, side: Side, starts: Sequence[Start], base: Written, other: Written) -> None:
        """A side's continuations."""
        apart = np.stack([self._shares(other[one.prompt_id]) - self._shares(base[one.prompt_id]) for one in starts])
        half = np.array([start.half for start in starts])
        means = [apart[half == which].mean(0) if (half == which).any() else np.zeros(self.vocab) for which in (0, 1)]
        self.lists.put(reading, side, Words.of(means[CHOOSE], means[MEASURE]))
        if side.name == TUNED:
            self.apart[reading] = starts, apart

    def intervals(self) -> Mapping[str, tuple[Floats, Floats, Floats]]:
        """By reading: means of the chosen words over the beginnings that measure, with intervals."""
        found = {}
        for reading, (starts, apart) in self.apart.items():
            measuring = [i for i, start in enumerate(starts) if start.half == MEASURE]
            ids = self.lists.of[reading][Side(TUNED)].token_ids
            mean, lo, hi, *_ = mean_interval(apart[measuring][:, ids], [starts[i].cluster for i in measuring])
            found[reading] = mean, lo, hi
        return found

    def _shares(self, texts: Sequence[tuple[int, ...]]) -> Floats:
        shares = np.zeros(self.vocab)
        for text in texts:
            shares[list({token for token in text if token < self.vocab})] += 1 / len(texts)
        return shares


def as_rows(
    reading: str, starts: Sequence[Start], by_model: Mapping[str, Written], tokenizer: PreTrainedTokenizerBase
) -> pd.DataFrame:
    """Continuations side by side: a row per beginning, draw and model, with where it first differs from the base's."""
    rows = []
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    lengths = (len(own) for written in by_model.values() for draws in written.values() for own in draws)
    longest = max(lengths, default=0)  # as many as were asked for, or the last of its tokens ended it
    for start in starts:
        for draw in range(DRAWS):
            base = by_model["base"][start.prompt_id][draw]
            for model, written in by_model.items():
                own = written[start.prompt_id][draw]
                same = next(
                    (i for i, (a, b) in enumerate(zip(own, base, strict=False)) if a != b), min(len(own), len(base))
                )
                rows.append(
                    {
                        "reading": reading,
                        "prompt_id": start.prompt_id,
                        "pos": len(start.ids) - 1,
                        "model": model,
                        "draw": draw,
                        "continuation": tokenizer.decode(own),
                        "alike": tokenizer.decode(own[:same]),
                        "n_tokens": len(own),
                        "ended": len(own) < longest or not special.isdisjoint(own[-1:]),
                    }
                )
    return pd.DataFrame(rows)
