"""Words that the base writes where T is added twice: to all of its weights, or to a component's alone.

Amplified logits (part `spoken`) show what the tuned model says rarely. Amplified weights, θ + 2T, show it where it is
made: with `amplify` a component's T is doubled while all others stay the base's, so that what it alone makes the model
say is seen. A sham is doubled in the same parameters. What that costs is the KL from the base on some of the texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from probes.discovery.observing import Seen, cluster_of
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.presence import Spoken, Start, as_rows, starts_of, write, writes, written_by_base
from probes.discovery.sampling import Writer
from probes.discovery.sides import TUNED, Model, Side, kl_at_each
from tv.stats.means import mean_interval

#: How often T is added.
TIMES = 2.0


@discovery_part("amplified")
@dataclass
class AmplifiedWords(Part):
    """Continuations of the texts by the base with twice a side's T, in every group of parameters that is asked for."""

    context: Context
    spoken: Spoken = field(init=False)
    samples: list[pd.DataFrame] = field(default_factory=list)
    damage: dict[str, dict[Side, list[float]]] = field(default_factory=dict)  # by reading; of every text

    def __post_init__(self) -> None:
        self.spoken = Spoken("amplified", self.context.pair.architecture.vocab_size)
        self.starts: list[Start] = starts_of(self.context.texts)

    def see(self, side: Side, seen: Seen) -> None:
        """Nothing: its models are others than those that are seen."""

    def close(self, side: Side, model: Model) -> None:
        if not writes(side, self.context.texts):
            return
        context = self.context
        by_base = written_by_base(context)
        for glob in context.amplify:
            reading, twice = f"{TIMES:g} T in {glob}", context.sides.scaled(model, TIMES, glob)
            written = write(Writer(twice.live), self.starts, context.seed, context.ends)
            self.spoken.add(reading, side, self.starts, by_base, written)
            self.damage.setdefault(reading, {})[side] = self._damage(twice)
            if side.name == TUNED:
                named = {"base": by_base, "tuned": written}
                self.samples.append(as_rows(reading, self.starts, named, context.pair.tokenizer))

    def _damage(self, twice: Model) -> list[float]:
        """KL from the base on the texts of the first batch, nats a token."""
        batch, _ = self.context.texts.batches[0]
        kl = kl_at_each(self.context.sides.base(batch).logits, twice.read(batch).logits).cpu()
        return [float(own.mean()) for own in kl.split([len(item.ids) for item in batch.encoded])]

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        if not self.samples:
            return
        yield "discovered_words", self.spoken.lists.rows(self.context.pair.tokenizer, self.spoken.intervals())
        yield "samples", pd.concat(self.samples, ignore_index=True).assign(part="amplified")
        clusters = [cluster_of(item) for item in self.context.texts.batches[0][0].encoded]
        rows = []
        for reading, of in self.damage.items():
            mean, lo, hi, *_ = mean_interval(of[Side(TUNED)], clusters)
            sham = max((float(np.mean(own)) for side, own in of.items() if side.is_null), default=float("nan"))
            row = {"reading": reading, "alpha": TIMES - 1, "kl": float(mean), "lo": float(lo), "hi": float(hi)}
            rows.append(row | {"sham": sham})
        yield "amplified", pd.DataFrame(rows)
