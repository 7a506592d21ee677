"""Claims: what one half of the texts suggests, said as a sentence and tested on the other half.

Three kinds, of what both models write after the texts and of where they part:

- words: up to eight tokens whose rate rises most on the half that chooses. Tested is how many continuations
  hold one of them; the interval is Newcombe's for pairs, the test McNemar's exact one.
- style: every feature of `probes.discovery.style`, in the direction that the half which chooses has. Tested is the
  paired difference, a mean over texts.
- triggers: three tokens with the largest gap (`probes.discovery.triggers`). Tested is the mean KL behind one against
  that of texts without it, each over means of clusters: Welch's test and interval.

Every sham makes its own claims in the same way. A claim's p is the larger of its test's and of one more sham reaching
the difference (`probes.discovery.null.beyond`); q is over all claims of a part; it holds where q is below 0.05, the
difference above every sham's, and its interval above 0. With fewer than 16 shams next to nothing can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from transformers import PreTrainedTokenizerBase

from probes.discovery.null import beyond
from probes.discovery.observing import CHOOSE, MEASURE
from probes.discovery.presence import Start, Written
from probes.discovery.sides import SHAM, TUNED, Side
from probes.discovery.style import FEATURES
from probes.discovery.triggers import Gap
from probes.discovery.word_lists import LEVEL
from tv.stats.families import benjamini_hochberg
from tv.stats.means import mean_interval
from tv.stats.proportions import mcnemar_p, share_change

Floats = NDArray[np.float64]
#: Tokens of a claim about words.
WORDS = 8
#: Tokens that may be triggers.
TRIGGERS = 3


@dataclass(frozen=True)
class Claim:
    """A sentence, and what the half that measures says of it. `difference` is in the sentence's direction."""

    claim: str
    n: int
    base: float
    tuned: float
    difference: float
    lo: float
    hi: float
    p: float


@dataclass
class Claims:
    """By the kind of claim, those of every side."""

    part: str
    of: dict[str, dict[Side, Claim]] = field(default_factory=dict)

    def add_written(
        self, side: Side, starts: Sequence[Start], base: Written, other: Written, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """What a side and the base write after the same beginnings."""
        halves = [[start for start in starts if start.half == half] for half in (CHOOSE, MEASURE)]
        if not all(halves):
            return
        choose, measure = halves
        self._put("words", side, self._words(choose, measure, base, other, tokenizer))
        before, after = (_styles(starts, written, tokenizer) for written in (base, other))
        half = np.array([start.half for start in starts])
        clusters = [start.cluster for start in measure]
        for i, (name, feature) in enumerate(FEATURES.items()):
            sign = 1.0 if (after - before)[half == CHOOSE, i].mean() >= 0 else -1.0
            x, y = before[half == MEASURE, i], after[half == MEASURE, i]
            mean, lo, hi, p, _ = mean_interval(sign * (y - x), clusters)
            still = np.array_equal(x, y)
            ratio = f"{y.mean() / x.mean():.3g}" if x.mean() else "more than 0"
            says = feature.same if feature.same and ratio == "1" else feature.more if sign > 0 else feature.less
            ends = (0.0, 0.0, 1.0) if still else (float(lo), float(hi), float(p))
            found = Claim(says.format(ratio=ratio), len(measure), float(x.mean()), float(y.mean()), float(mean), *ends)
            self._put(name, side, found)

    def add_triggers(self, side: Side, found: Sequence[Gap], tokenizer: PreTrainedTokenizerBase) -> None:
        """Of the tokens behind which a side parts from the base."""
        chosen = sorted(found, key=lambda one: -one.chosen)[:TRIGGERS]
        for rank, one in enumerate(sorted(chosen, key=lambda one: -one.measured)):
            test = stats.ttest_ind(one.behind, one.without, equal_var=False)
            interval = test.confidence_interval()
            says = f"parts from the base behind {_quoted(one.token, tokenizer)}"
            ends = (float(interval.low), float(interval.high), float(test.pvalue))
            n = len(one.behind) + len(one.without)
            means = float(one.without.mean()), float(one.behind.mean())
            self._put(f"trigger {rank}", side, Claim(says, n, *means, one.measured, *ends))

    def rows(self) -> pd.DataFrame:
        """The tuned model's claims as rows of the table `claims`; q is over all of them."""
        rows: list[dict[str, object]] = []
        for by_side in (of for of in self.of.values() if Side(TUNED) in of):
            own = by_side[Side(TUNED)]
            shams = [claim.difference for side, claim in by_side.items() if side.name == SHAM]
            null = beyond([own.difference], np.array(shams)[:, None]) if shams else None
            reached = np.nan if null is None else float(null.p[0])
            rows.append(
                {
                    "part": self.part,
                    "claim": own.claim,
                    "n": own.n,
                    "value_base": own.base,
                    "value_tuned": own.tuned,
                    "difference": own.difference,
                    "lo": own.lo,
                    "hi": own.hi,
                    "sham": np.nan if null is None else float(null.null[0]),
                    "p": np.fmax(own.p, reached) if np.isfinite(own.p) else np.nan,
                }
            )
        found = pd.DataFrame(rows)
        found["q"] = benjamini_hochberg(found.p)
        return found.assign(holds=(found.q < LEVEL) & (found.difference > found.sham) & (found.lo > 0))

    def _put(self, kind: str, side: Side, claim: Claim) -> None:
        self.of.setdefault(kind, {})[side] = claim

    @staticmethod
    def _words(
        choose: Sequence[Start],
        measure: Sequence[Start],
        base: Written,
        other: Written,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Claim:
        rates: dict[int, float] = {}
        for start in choose:
            for sign, written in ((1.0, other), (-1.0, base)):
                for text in written[start.prompt_id]:
                    for token in set(text):
                        rates[token] = rates.get(token, 0.0) + sign
        most = max(rates.values(), default=0.0)
        risen = [
            token for token, rate in rates.items() if rate > 0 and rate >= most / 2
        ]  # a frequent word hides others
        top = sorted(risen, key=lambda token: (-rates[token], token))[:WORDS]
        wanted, texts = set(top), [(start, draw) for start in measure for draw in range(len(base[start.prompt_id]))]
        before, after = (
            np.array([float(bool(wanted & set(written[start.prompt_id][draw]))) for start, draw in texts])
            for written in (base, other)
        )
        clusters = [start.cluster for start, _ in texts]
        gap, lo, hi = share_change(before, after, clusters)
        says = (
            f"writes one of {', '.join(_quoted(token, tokenizer) for token in top)} more often"
            if top
            else "writes no token more often"
        )
        p = mcnemar_p(before, after, clusters)
        return Claim(says, len(texts), float(before.mean()), float(after.mean()), gap, lo, hi, p)


def _styles(starts: Sequence[Start], written: Written, tokenizer: PreTrainedTokenizerBase) -> Floats:
    """(starts, features): a mean over continuations."""
    by_start = [[(ids, str(tokenizer.decode(list(ids)))) for ids in written[start.prompt_id]] for start in starts]
    features = list(FEATURES.values())
    return np.array([[np.mean([of.of(*one) for one in own]) for of in features] for own in by_start])


def _quoted(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    return f"“{str(tokenizer.decode([token])).strip() or tokenizer.convert_ids_to_tokens(token)}”"
