"""Where base and tuned part: the places of the texts with the largest KL, and what both write from there.

One pass over any amount of text: of each text its sum and its largest place are kept. What is written from the places
of one half chooses words, and the places of the other half measure them. A token of the texts that predicts a large KL
behind it (a trigger) is looked for in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from probes.discovery.observing import CHOOSE, MEASURE, Seen, cluster_of
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.presence import Spoken, Start, as_rows, write, writes
from probes.discovery.sampling import Writer
from probes.discovery.sides import TUNED, Model, Side
from probes.discovery.word_lists import TOP, WordLists, Words
from tv.prompts.encoding import Encoded

#: Places of each half from which models write.
PLACES = 24
#: A token is looked at where it is in so many texts of either half.
TEXTS = 2


@discovery_part("divergences")
@dataclass
class Divergences(Part):
    """KL at every place, the texts' largest, what is written there, and which words of the texts come before it."""

    context: Context
    spoken: Spoken = field(init=False)
    triggers: WordLists = field(default_factory=lambda: WordLists("triggers"))
    rows: list[dict[str, object]] = field(default_factory=list)  # of the tuned model, a text each
    samples: list[pd.DataFrame] = field(default_factory=list)
    _largest: dict[int, list[tuple[float, Start]]] = field(default_factory=dict)  # by half, of this side
    _behind: np.ndarray = field(init=False)  # sums of KL behind a token, and in how many texts; by half and token

    def __post_init__(self) -> None:
        self.spoken = Spoken("divergences", self.context.pair.architecture.vocab_size)
        self._forget()

    def _forget(self) -> None:
        self._largest = {CHOOSE: [], MEASURE: []}
        self._behind = np.zeros((2, 2, self.context.pair.architecture.vocab_size))

    def see(self, side: Side, seen: Seen) -> None:
        kl = seen.kl.cpu()
        changed = (seen.base.logits.argmax(1) != seen.other.logits.argmax(1)).cpu() if side.name == TUNED else kl
        for i, item in enumerate(seen.encoded):
            own = kl[seen.text == i].numpy()
            pos = int(own.argmax())
            self._place(seen.halves[i], float(own[pos]), item, pos)
            if seen.in_null:
                self._follow(seen.halves[i], item.ids, own)
            if side.name == TUNED:
                self.rows.append(
                    {
                        "prompt_id": item.prompt.id,
                        "half": seen.halves[i],
                        "pos": pos,
                        "kl_largest": float(own[pos]),
                        "kl": float(own.mean()),
                        "changed": float(changed[seen.text == i].float().mean()),
                        "token_id": item.ids[pos],
                        "token": self.context.pair.tokenizer.decode([item.ids[pos]]),
                    }
                )

    def close(self, side: Side, model: Model) -> None:
        if side.is_null or side.name == TUNED:
            self._close_triggers(side)
        if writes(side):
            self._close_spoken(side, model)
        self._forget()

    def _place(self, half: int, kl: float, item: Encoded, pos: int) -> None:
        """Of a half the texts with the largest KL are kept, however many there are."""
        own = self._largest[half]
        own.append((kl, Start(item.prompt.id, item.ids[: pos + 1], half, cluster_of(item))))
        if len(own) > PLACES:
            own.sort(key=lambda one: -one[0])
            own.pop()

    def _follow(self, half: int, ids: tuple[int, ...], kl: np.ndarray) -> None:
        """By token: the mean KL of the places from its first on."""
        behind = np.cumsum(kl[::-1])[::-1] / np.arange(len(kl), 0, -1)
        for token in set(ids):
            self._behind[:, half, token] += behind[ids.index(token)], 1

    def _close_triggers(self, side: Side) -> None:
        """By token: the mean KL behind it, less the median token's."""
        scores, counts = self._behind
        enough = (counts >= TEXTS).all(0)
        if enough.sum() < TOP:
            return
        means = scores[:, enough] / counts[:, enough]
        words = Words.of(*(means - np.median(means, axis=1, keepdims=True)))
        self.triggers.put("behind it", side, replace(words, token_ids=np.flatnonzero(enough)[words.token_ids]))

    def _close_spoken(self, side: Side, model: Model) -> None:
        starts = [start for own in self._largest.values() for _, start in sorted(own, key=lambda one: -one[0])]
        seed, base = self.context.seed, self.context.pair.base
        both = [write(Writer([(live, 1.0)]), starts, seed, self.context.ends) for live in (base, model.live)]
        self.spoken.add("from the largest", side, starts, *both)
        if side.name == TUNED:
            named = dict(zip(("base", "tuned"), both, strict=True))
            self.samples.append(as_rows("from the largest", starts, named, self.context.pair.tokenizer))

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        tokenizer = self.context.pair.tokenizer
        yield "discovered_words", self.spoken.lists.rows(tokenizer, self.spoken.intervals())
        if self.triggers.of:
            yield "discovered_words", self.triggers.rows(tokenizer, {})
        yield "samples", pd.concat(self.samples, ignore_index=True).assign(part="divergences")
        yield "divergences", pd.DataFrame(self.rows)
