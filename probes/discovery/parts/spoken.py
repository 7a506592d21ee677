"""What the tuned model writes after the texts, plain and amplified: words that the base does not write there.

Amplified are the logits base + (1 + α)(tuned − base): what is rare in the tuned model becomes frequent, and what it
says becomes worse. How much worse is the KL from the base on the texts themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from probes.discovery.claims import Claims
from probes.discovery.observing import Seen, cluster_of
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.presence import Spoken, Start, as_rows, starts_of, write_amplified, writes, written_by_base
from probes.discovery.sampling import Writer
from probes.discovery.sides import SHAM, TUNED, Model, Side, kl_at_each
from tv.stats.means import mean_interval

#: How far beyond the tuned model; 0 is the tuned model itself. Words are claimed at the first two: further out a sham
#: repeats single words as a tuned model does, and what is written is there to be read.
ALPHAS, CLAIMED = (0.0, 1.0, 3.0), 2


@discovery_part("spoken")
@dataclass
class SpokenWords(Part):
    """Continuations of the texts by base and tuned, and amplified."""

    context: Context
    spoken: Spoken = field(init=False)
    claims: Claims = field(init=False)
    samples: list[pd.DataFrame] = field(default_factory=list)
    damage: dict[float, list[tuple[str, str, float]]] = field(default_factory=dict)  # of the tuned model
    shams: dict[float, list[float]] = field(default_factory=dict)  # mean damage of every draw
    _own: dict[float, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spoken = Spoken("spoken", self.context.pair.architecture.vocab_size)
        self.claims = Claims("spoken")
        self.starts: list[Start] = starts_of(self.context.texts)

    def see(self, side: Side, seen: Seen) -> None:
        if not writes(side, self.context.texts) or not seen.in_null:
            return
        base, apart = seen.base.logits, seen.shift
        for alpha in ALPHAS:
            kl = kl_at_each(base[:, : apart.shape[1]], base[:, : apart.shape[1]] + (1 + alpha) * apart)
            for i, item in enumerate(seen.encoded):
                mean = float(kl[seen.text == i].mean())
                self._own.setdefault(alpha, []).append(mean)
                if side.name == TUNED:
                    self.damage.setdefault(alpha, []).append((item.prompt.id, cluster_of(item), mean))

    def close(self, side: Side, model: Model) -> None:
        if not writes(side, self.context.texts):
            return
        by_base = written_by_base(self.context)
        alphas = ALPHAS if side.name == TUNED else ALPHAS[:CLAIMED]
        writer = Writer(model.live, self.context.pair.base)
        by_alpha = write_amplified(writer, self.starts, self.context.seed, self.context.ends, alphas)
        self.claims.add_written(side, self.starts, by_base, by_alpha[0], self.context.pair.tokenizer)
        if side.name == SHAM:
            for alpha, means in self._own.items():
                self.shams.setdefault(alpha, []).append(float(np.mean(means)))
        self._own = {}
        for alpha, written in by_alpha.items():
            reading = _reading(alpha)
            if alpha in ALPHAS[:CLAIMED]:
                self.spoken.add(reading, side, self.starts, by_base, written)
            if side.name == TUNED:
                named = {"base": by_base, "tuned": written}
                self.samples.append(as_rows(reading, self.starts, named, self.context.pair.tokenizer))

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        yield "discovered_words", self.spoken.lists.rows(self.context.pair.tokenizer, self.spoken.intervals())
        if self.claims.of:
            yield "claims", self.claims.rows()
        yield "samples", pd.concat(self.samples, ignore_index=True).assign(part="spoken")
        rows = []
        for alpha, own in self.damage.items():
            mean, lo, hi, *_ = mean_interval([value for *_, value in own], [cluster for _, cluster, _ in own])
            sham = max(self.shams.get(alpha, [np.nan]))
            rows.append(
                {
                    "reading": _reading(alpha),
                    "alpha": alpha,
                    "kl": float(mean),
                    "lo": float(lo),
                    "hi": float(hi),
                    "sham": sham,
                }
            )
        yield "amplified", pd.DataFrame(rows)


def _reading(alpha: float) -> str:
    return f"amplified {alpha:g}" if alpha else "as it is"
