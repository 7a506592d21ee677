"""Lists of words: what a side favours, chosen on one half of the texts and measured on the other, beside the nulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from probes.discovery.null import beyond
from probes.discovery.sides import ROUNDED, SHAM, TUNED, Side
from tv.stats.families import benjamini_hochberg

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Words in a list.
TOP = 20
#: A word stands out where its q is below this, its value above that of every draw and its interval above 0.
LEVEL = 0.05
COLUMNS = [
    *("part", "reading", "rank", "token_id", "token", "chosen", "value", "lo", "hi", "noise", "sham", "floor"),
    *("rank_p", "p", "q", "stands_out"),
]


@dataclass(frozen=True)
class Words:
    """Tokens that one half of the texts chose, with their scores on that half and on the other, largest there first."""

    token_ids: Ints
    chosen: Floats
    measured: Floats

    @classmethod
    def of(cls, choose: Floats, measure: Floats, top: int = TOP) -> Words:
        """From the scores of all tokens, (vocab,), on either half."""
        top = min(top, len(choose))
        ids = np.argpartition(-choose, top - 1)[:top]
        ids = ids[np.lexsort((ids, -measure[ids]))]
        return cls(ids, choose[ids], measure[ids])


@dataclass
class WordLists:
    """Of every reading, the list of every side."""

    part: str
    of: dict[str, dict[Side, Words]] = field(default_factory=dict)

    def put(self, reading: str, side: Side, words: Words) -> None:
        """A side's list."""
        self.of.setdefault(reading, {})[side] = words

    def rows(
        self, tokenizer: PreTrainedTokenizerBase, intervals: Mapping[str, tuple[Floats, Floats, Floats]]
    ) -> pd.DataFrame:
        """The tuned model's lists as rows of `discovered_words`.

        q is over all words of the part. `intervals` gives (value, lo, hi) over texts for a reading's words, where it
        has them; the value of others is the measured score.
        """
        parts = [self._list(reading, lists, tokenizer, intervals.get(reading)) for reading, lists in self.of.items()]
        rows = pd.concat(parts, ignore_index=True)
        rows["q"] = benjamini_hochberg(rows.p)
        above = (rows.measured > rows[["noise", "sham", "floor"]].max(axis=1)) & (rows.measured > 0)
        on_most_texts = rows.lo.isna() | (rows.lo > 0)
        rows["stands_out"] = above & on_most_texts & (rows.q < LEVEL)
        return rows[COLUMNS]

    def _list(
        self,
        reading: str,
        lists: Mapping[Side, Words],
        tokenizer: PreTrainedTokenizerBase,
        interval: tuple[Floats, Floats, Floats] | None,
    ) -> pd.DataFrame:
        own = lists[Side(TUNED)]
        noise = beyond(own.measured, _draws(lists, lambda side: side.is_null and side.name != SHAM))
        sham = beyond(own.measured, _draws(lists, lambda side: side.name == SHAM))
        floor = next((words.measured for side, words in lists.items() if side.name == ROUNDED), None)
        nothing = np.full(len(own.token_ids), np.nan)
        value, lo, hi = interval if interval is not None else (own.measured, nothing, nothing)
        return pd.DataFrame(
            {
                "part": self.part,
                "reading": reading,
                "rank": np.arange(len(own.token_ids)),
                "token_id": own.token_ids,
                "token": [tokenizer.decode([int(token)]) for token in own.token_ids],
                "chosen": own.chosen,
                "measured": own.measured,
                "value": value,
                "lo": lo,
                "hi": hi,
                "noise": noise.null,
                "sham": sham.null,
                "floor": nothing if floor is None else floor,
                "rank_p": np.fmax(noise.rank_p, sham.rank_p),
                "p": np.fmax(noise.p, sham.p),
            }
        )


def _draws(lists: Mapping[Side, Words], wanted: Callable[[Side], bool]) -> Floats:
    found = [words.measured for side, words in lists.items() if wanted(side)]
    return np.array(found) if found else np.zeros((0, 0))
