"""Where base and tuned part: the places of the texts with the largest KL, and what both write from there.

One pass over any amount of text: of each text its sum and its largest place are kept. What is written from the places
of one half chooses words, and the places of the other half measure them. A token of the texts that predicts a large KL
behind it (a trigger) is looked for in the same way.

Of the texts with the largest KL every token is kept, beside the largest that a sham reaches at the same place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from probes.discovery.claims import Claims
from probes.discovery.observing import CHOOSE, MEASURE, Seen, cluster_of
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.presence import Spoken, Start, as_rows, write, writes
from probes.discovery.sampling import Writer
from probes.discovery.sides import SHAM, TUNED, Model, Side
from probes.discovery.triggers import Followed, Gap, gaps
from probes.discovery.word_lists import WordLists, Words
from tv.prompts.encoding import Encoded

#: Places of each half from which models write.
PLACES = 24
#: Texts whose tokens are kept, those with the largest KL.
SHOWN = 40


@discovery_part("divergences")
@dataclass
class Divergences(Part):
    """KL at every place, the texts' largest, what is written there, and which words of the texts come before it."""

    context: Context
    spoken: Spoken = field(init=False)
    claims: Claims = field(init=False)
    triggers: WordLists = field(default_factory=lambda: WordLists("triggers"))
    rows: list[dict[str, object]] = field(default_factory=list)  # of the tuned model, a text each
    samples: list[pd.DataFrame] = field(default_factory=list)
    shown: dict[str, pd.DataFrame] = field(default_factory=dict)  # by text, its tokens
    peaks: dict[str, float] = field(default_factory=dict)  # of these, the largest KL
    shams: dict[str, list[np.ndarray]] = field(default_factory=dict)  # of these, the KL of every sham
    _largest: dict[int, list[tuple[float, Start]]] = field(default_factory=dict)  # by half, of this side
    _followed: list[Followed] = field(default_factory=list)  # the nulls' texts, of this side

    def __post_init__(self) -> None:
        self.spoken = Spoken("divergences", self.context.pair.architecture.vocab_size)
        self.claims = Claims("divergences")
        self.n_places = min(PLACES, self.context.texts.n_written // 2)
        self._forget()

    def _forget(self) -> None:
        self._largest, self._followed = {CHOOSE: [], MEASURE: []}, []

    def see(self, side: Side, seen: Seen) -> None:
        kl = seen.kl.cpu()
        is_tuned = side.name == TUNED
        both = [of.logits.argmax(1).cpu() if is_tuned else kl for of in (seen.base, seen.other)]
        for i, item in enumerate(seen.encoded):
            own = kl[seen.text == i].numpy()
            pos = int(own.argmax())
            if seen.in_null:  # as many for the tuned model as for every draw: nulls search as widely
                self._place(seen.halves[i], float(own[pos]), item, pos)
                self._followed.append(Followed.of(seen.halves[i], cluster_of(item), item.ids, own))
            if side.name == SHAM and item.prompt.id in self.shown:
                self.shams.setdefault(item.prompt.id, []).append(own)
            if is_tuned:
                here = seen.text == i
                self._show(item, seen.halves[i], own, both[0][here].tolist(), both[1][here].tolist())
                self.rows.append(
                    {
                        "prompt_id": item.prompt.id,
                        "half": seen.halves[i],
                        "pos": pos,
                        "kl_largest": float(own[pos]),
                        "kl": float(own.mean()),
                        "changed": float((both[0][here] != both[1][here]).float().mean()),
                        "token_id": item.ids[pos],
                        "token": self.context.pair.tokenizer.decode([item.ids[pos]]),
                    }
                )

    def _show(self, item: Encoded, half: int, kl: np.ndarray, base: list[int], tuned: list[int]) -> None:
        """Keep the tokens of a text while it is among those with the largest KL."""
        if len(self.peaks) == SHOWN:
            least = min(self.peaks, key=lambda prompt: self.peaks[prompt])
            if kl.max() <= self.peaks[least]:
                return
            del self.peaks[least], self.shown[least]
        self.peaks[item.prompt.id] = float(kl.max())
        words, (before, after) = self._words(item.ids), map(self._words, (base, tuned))
        self.shown[item.prompt.id] = pd.DataFrame(
            {
                "prompt_id": item.prompt.id,
                "half": half,
                "pos": np.arange(len(kl)),
                "token_id": item.ids,
                "token": words,
                "kl": kl,
                "next_base": before,
                "next_tuned": after,
            }
        )

    def _words(self, ids: Sequence[int]) -> list[str]:
        return [self.context.pair.tokenizer.decode([token]) for token in ids]

    def close(self, side: Side, model: Model) -> None:
        if side.is_null or side.name == TUNED:
            self._close_triggers(side, list(gaps(self._followed)))
        if writes(side, self.context.texts):
            self._close_spoken(side, model)
        self._forget()

    def _place(self, half: int, kl: float, item: Encoded, pos: int) -> None:
        """Of a half the texts with the largest KL are kept, however many there are."""
        own = self._largest[half]
        own.append((kl, Start(item.prompt.id, item.ids[: pos + 1], half, cluster_of(item))))
        if len(own) > self.n_places:
            own.sort(key=lambda one: -one[0])
            own.pop()

    def _close_triggers(self, side: Side, found: Sequence[Gap]) -> None:
        """The tokens with the largest gap, as words and as claims."""
        if side.name in (TUNED, SHAM):
            self.claims.add_triggers(side, found, self.context.pair.tokenizer)
        if found:  # the same tokens under every side
            words = Words.of(np.array([one.chosen for one in found]), np.array([one.measured for one in found]))
            tokens = np.array([one.token for one in found])
            self.triggers.put("behind it", side, replace(words, token_ids=tokens[words.token_ids]))

    def _close_spoken(self, side: Side, model: Model) -> None:
        starts = [start for own in self._largest.values() for _, start in sorted(own, key=lambda one: -one[0])]
        seed, base = self.context.seed, self.context.pair.base
        both = [write(Writer(live), starts, seed, self.context.ends) for live in (base, model.live)]
        self.spoken.add("from the largest", side, starts, *both)
        if side.name == TUNED:
            named = dict(zip(("base", "tuned"), both, strict=True))
            self.samples.append(as_rows("from the largest", starts, named, self.context.pair.tokenizer))

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        tokenizer = self.context.pair.tokenizer
        yield "discovered_words", self.spoken.lists.rows(tokenizer, self.spoken.intervals())
        if self.triggers.of:
            yield "discovered_words", self.triggers.rows(tokenizer, {})
        if self.claims.of:
            yield "claims", self.claims.rows()
        yield "samples", pd.concat(self.samples, ignore_index=True).assign(part="divergences")
        yield "divergences", pd.DataFrame(self.rows)
        yield "token_divergences", pd.concat(map(self._beside_shams, self.shown), ignore_index=True)

    def _beside_shams(self, prompt: str) -> pd.DataFrame:
        """The tokens of a text, with the largest KL of a sham there."""
        tokens, shams = self.shown[prompt], self.shams.get(prompt)
        return tokens.assign(sham=np.max(shams, 0) if shams else np.nan)
