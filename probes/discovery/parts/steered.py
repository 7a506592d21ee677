"""What the base writes when it is steered by mean Δh: the words that it then says and did not.

Mean Δh of the middle depth, over the first or the far places of the texts, is added to every state that enters the
block there while the base continues the beginnings of texts. If tuning leaves its subject in Δh, it can be read
there in whole sentences.

The vector has the length at which it moves the base's predictions by `KL` nats, on average over texts of the half that
chooses: long enough to be seen, short enough that the base still writes. A control's Δh is as long as that takes too.
So every side does the same damage, and counts by its direction alone. Words are chosen on beginnings of one half and
measured on those of the other, which neither the vector nor its length knows.

Source: steering as in J. Minder et al. (2025), arXiv 2510.13900, who have a language model judge how long it may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn.functional import normalize

from probes.discovery.differences import middle
from probes.discovery.observing import CHOOSE, MEASURE, Seen, cluster_of
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.presence import Spoken, Start, Written, as_rows, write, writes
from probes.discovery.sampling import Writer
from probes.discovery.sides import ROUNDED, SHAM, TUNED, Model, Side
from probes.discovery.steering import SCALES, Floats, kl_of, length_of, steered
from tv.prompts.encoding import Batch, Encoded, batches
from tv.stats.means import mean_interval

#: KL that steering does, nats.
KL = 0.5
#: Texts on which its length is found, of the half that chooses, and on which its damage is measured, of the other.
TEXTS = {CHOOSE: 8, MEASURE: 12}
#: Beginnings, and their tokens, BOS not counted.
STARTS, LONGEST = 40, 4
PLACES = ("first", "far")


@discovery_part("steered")
@dataclass
class SteeredWords(Part):
    """Readings `by the first` and `by the far` places."""

    context: Context
    spoken: Spoken = field(init=False)
    base: Written = field(default_factory=dict)
    samples: list[pd.DataFrame] = field(default_factory=list)
    damage: dict[str, dict[str, list[tuple[float, Floats]]]] = field(default_factory=dict)  # by place and side's name

    def __post_init__(self) -> None:
        pair, texts = self.context.pair, self.context.texts
        self.spoken = Spoken("steered", pair.architecture.vocab_size)
        self.bos, self.depth = pair.tokenizer.bos_token_id, middle(pair.architecture.n_layers)
        self.starts = [
            Start(item.prompt.id, self._beginning(item), texts.halves[item.prompt.id], cluster_of(item))
            for item in texts.null[:STARTS]
        ]

    @property
    def few(self) -> dict[int, list[tuple[Batch, Tensor]]]:
        """A few texts of either half, and what the base says of them: the context has it, and no state of this part."""
        return self.context.once("steered", lambda: {half: self._texts(half) for half in (CHOOSE, MEASURE)})

    def _beginning(self, item: Encoded) -> tuple[int, ...]:
        return item.ids[: LONGEST + (item.ids[0] == self.bos)]

    def _texts(self, half: int) -> list[tuple[Batch, Tensor]]:
        """A few texts of a half, and what the base says of them."""
        texts = self.context.texts
        own = [item for item in texts.null if texts.halves[item.prompt.id] == half]
        few = batches(own[: TEXTS[half]], texts.batch_size, texts.pad_id)
        return [(batch, self.context.sides.base(batch).logits) for batch in few]

    def see(self, side: Side, seen: Seen) -> None:
        self.context.differences.see(side, seen)

    def close(self, side: Side, model: Model) -> None:
        if not (writes(side, self.context.texts) or side.name == ROUNDED):
            return
        base, seed = self.context.sides.base_model, self.context.seed
        if not self.base:
            self.base = write(Writer(base.live), self.starts, seed, self.context.ends)
        for place in PLACES:
            sums = self.context.differences.sums.get(place)
            if sums is None or not sums.in_both or not sums.mean(CHOOSE)[self.depth].any():
                continue
            unit = normalize(sums.mean(CHOOSE)[self.depth], dim=0) * sums.usual[self.depth]
            tried = [float(kl_of(base, scale * unit, self.depth, self.few[CHOOSE]).mean()) for scale in SCALES]
            length = length_of(tried, SCALES, KL)
            kl = kl_of(base, length * unit, self.depth, self.few[MEASURE])
            self.damage.setdefault(place, {}).setdefault(side.name, []).append((length, kl))
            with steered(base, length * unit, self.depth):
                written = write(Writer(base.live), self.starts, seed, self.context.ends)
            reading = f"by the {place} places"
            self.spoken.add(reading, side, self.starts, self.base, written)
            if side.name == TUNED:
                named = {"base": self.base, "tuned": written}
                self.samples.append(as_rows(reading, self.starts, named, self.context.pair.tokenizer))

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        if not self.samples:
            return
        yield "discovered_words", self.spoken.lists.rows(self.context.pair.tokenizer, self.spoken.intervals())
        yield "samples", pd.concat(self.samples, ignore_index=True).assign(part="steered")
        yield "steering", pd.DataFrame([self._row(place, by_side) for place, by_side in self.damage.items()])

    def _row(self, place: str, by_side: dict[str, list[tuple[float, Floats]]]) -> dict[str, object]:
        ((length, own),) = by_side[TUNED]
        clusters = [cluster_of(item) for batch, _ in self.few[MEASURE] for item in batch.encoded]
        kl, lo, hi, *_ = mean_interval(own, clusters)
        row: dict[str, object] = {"place": place, "depth": self.depth, "length": length}
        row |= {"kl": float(kl), "lo": float(lo), "hi": float(hi)}
        for beside, name in (("sham", SHAM), ("floor", ROUNDED)):
            draws = by_side.get(name, [])
            row[f"length_{beside}"] = max((longest for longest, _ in draws), default=np.nan)
            row[f"kl_{beside}"] = max((float(found.mean()) for _, found in draws), default=np.nan)
        return row
