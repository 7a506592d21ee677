"""Activation difference lens: mean Δh of unrelated texts, read as if it were a model's last state.

Narrow tuning leaves a constant in the residual stream, at the first tokens of any text above all. It is read here at
three kinds of place, at every depth, by the base's final norm and unembedding and by the tuned model's own (a control
reads by its own too), in three forms:

- `plain`: mean Δh.
- `demeaned`: less its projection on the base's mean state of that depth. All states share this direction; moving along
  it makes states longer or shorter, and reads as the words that are frequent anyway. (The mean over texts of Δh
  itself, which one may also call its mean, is what is read: without it nothing is left.)
- `whitened`: times Σ^(−½), with Σ the base's covariance at that depth, shrunk as Ledoit and Wolf do. Where states
  vary much anyway, a difference counts less.

A word's score says by how much the lens moves its logit, in standard deviations over the vocabulary at the depth where
these are largest; at the depth where it scores most on the half that chooses, measured on the other half; and of this,
what no sham has (`probes.discovery.surprise`). So a score is of Δh's direction and not of its length. Length is no
evidence: any long training moves states further than one gradient does, and in logits nearly every word of a model
that had read more of the base's own text stood out of the shams. A list where nothing stands out is a reading, and no
finding.

Where the tuned model's own lens shows words that the base's does not, its unembedding learnt them, not the state.

At a BOS alone Δh is the same in all texts, so that nothing is held out there: controls alone speak.

Source: J. Minder et al. (2025), arXiv 2510.13900, has `plain`, at the middle depth, at each of the first five places.
Here their mean is the reading `paper base` or `paper tuned`: chosen on all texts, and not compared with single shams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probes.discovery.differences import (
    Floats,
    Means,
    Scores,
    Sums,
    Vary,
    largest,
    lens,
    logits_of,
    middle,
    on_one_scale,
    read_at,
    standardised,
)
from probes.discovery.observing import CHOOSE, MEASURE, Seen
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.sides import ROUNDED, SHAM, TUNED, Model, Side
from probes.discovery.surprise import Surprises
from probes.discovery.usual import Sample, Usual
from probes.discovery.word_lists import WordLists, Words
from probes.measures.logit_lens import Reader

#: Tokens of every depth in the table `lens_words`.
SHOWN = 5
#: The lens of the literature.
PAPER = "paper"


@discovery_part("difference_lens")
@dataclass
class DifferenceLens(Part):
    """Readings `PLACE FORM READER`, such as `first plain base`, and `paper READER`."""

    streams: ClassVar[bool] = True
    context: Context
    scores: Surprises = field(default_factory=lambda: Surprises("difference_lens"))
    paper: WordLists = field(default_factory=lambda: WordLists("difference_lens"))
    norms: dict[str, dict[str, list[Floats]]] = field(default_factory=dict)  # by place and side's name
    rows: list[dict[str, object]] = field(default_factory=list)
    usual: Usual | None = None  # the base's states at the depths that are read

    def __post_init__(self) -> None:
        architecture, texts = self.context.pair.architecture, self.context.texts
        self.depths = read_at(architecture.n_layers)
        self.vocab = min(len(model.get_input_embeddings().weight) for model in self.context.pair.models)
        self.sample = Sample.of(sum(len(item.ids) for item in texts.null))

    def see(self, side: Side, seen: Seen) -> None:
        self.context.differences.see(side, seen)
        if seen.in_null and side.name == TUNED:
            self.sample.add(seen)

    @property
    def sums(self) -> dict[str, Sums]:
        """Of the side that is seen."""
        return self.context.differences.sums

    def close(self, side: Side, model: Model) -> None:
        if self.usual is None:
            self.usual = self.sample.states().at(self.depths)
        readers = {"base": self.context.sides.base_model.reader, "tuned": model.reader}
        forms: dict[str, Vary] = {
            "plain": lambda means: means,
            "demeaned": self.usual.without_mean,
            "whitened": self.usual.whitened,
        }
        for place, sums in self.sums.items():
            if not sums.in_both:
                continue
            norms = torch.stack([sums.size() * sums.n.sum() / of.clamp(min=1e-30) for of in (sums.length, sums.base)])
            self.norms.setdefault(place, {}).setdefault(side.name, []).append(norms.double().numpy())
            halves = [sums.mean(half)[self.depths] for half in (CHOOSE, MEASURE)]
            varied = torch.stack([torch.stack([vary(of) for of in halves]) for vary in forms.values()])
            for name, reader in readers.items():
                scores = on_one_scale(logits_of(reader, varied, sums.usual[self.depths], self.vocab))
                for (form, vary), of in zip(forms.items(), scores, strict=True):
                    self._put(side, place, form, name, reader, vary, of)
        if "first" in self.sums:
            for name, reader in readers.items():
                self._read_as_paper(side, f"{PAPER} {name}", reader)

    def _put(
        self,
        side: Side,
        place: str,
        form: str,
        name: str,
        reader: Reader,
        vary: Vary,
        scores: Float[Tensor, "halves depth vocab"],
    ) -> None:
        """One reading of a side."""
        sums, reading = self.sums[place], f"{place} {form} {name}"

        def logits(means: Means) -> Scores:
            return logits_of(reader, vary(means[self.depths]), sums.usual[self.depths], self.vocab)

        choose, measure = scores[CHOOSE], scores[MEASURE]
        chosen, depth = choose.max(0)

        def there(scores: Scores) -> Tensor:
            return scores.gather(0, depth[None])[0]

        self.scores.put(reading, side, chosen, there(measure))
        if side.name == TUNED:
            self.scores.put_without(reading, [there(on_one_scale(logits(of))) for of in sums.without(MEASURE)])
            self.rows += self._rows(place, form, name, standardised(logits(sums.both())))

    def _read_as_paper(self, side: Side, reading: str, reader: Reader) -> None:
        mean = self.sums["first"].both()[[middle(self.context.pair.architecture.n_layers)]]
        z = standardised(lens(reader, mean, self.vocab))[0].double().numpy()
        self.paper.put(reading, side, Words.of(z, z))

    def _rows(self, place: str, form: str, reader: str, scores: Tensor) -> Iterator[dict[str, object]]:
        best = scores.topk(min(SHOWN, self.vocab))
        for depth, values, ids in zip(self.depths, best.values.tolist(), best.indices.tolist(), strict=True):
            for rank, (z, token) in enumerate(zip(values, ids, strict=True)):
                word = self.context.pair.tokenizer.decode([token])
                yield {
                    "depth": depth,
                    "place": place,
                    "variant": form,
                    "reader": reader,
                    "rank": rank,
                    "token_id": token,
                    "token": word,
                    "z": z,
                }

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        lists, intervals = self.scores.lists()
        lists.of |= self.paper.of
        yield "discovered_words", lists.rows(self.context.pair.tokenizer, intervals)
        yield "lens_words", pd.DataFrame(self.rows)
        yield "difference_norms", pd.concat([self._norms(place) for place in self.norms], ignore_index=True)

    def _norms(self, place: str) -> pd.DataFrame:
        by_side = self.norms[place]
        (own,) = by_side[TUNED]
        found = {"depth": np.arange(own.shape[1]), "place": place}
        for i, name in enumerate(("constant", "size")):
            found[name] = own[i]
            for beside, side in (("sham", SHAM), ("random", "random"), ("floor", ROUNDED)):
                found[f"{name}_{beside}"] = largest(by_side, side, own)[i]
        return pd.DataFrame(found)
