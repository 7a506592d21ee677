"""Topics of what the tuning favours: words whose logits rise together, at the same places.

The rise of every token's logit (less the mean over the vocabulary, and 0 where it falls) at some tokens of every text
is taken apart by a non-negative factorization: topics, each a list of words with a loading at every place. Topics are
found on one half of the texts, the largest first; on the other half their loadings are found, and their words fitted
again with these. A word's score in a topic is the rise that the topic gives it (rms over places), and of this, what no
sham has in any of its topics (`probes.discovery.surprise`): the topics of two vectors have no order in common.

Memory: float32 for `PLACES` tokens of the texts, or as many as make `ENTRIES` entries of the vocabulary, while a side
is seen; of these the `WORDS` tokens that rise most on the half that chooses are taken apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.discovery.differences import GROUPS, Floats, jackknifed, largest
from probes.discovery.drawn import Drawn, Place, largest_places, places
from probes.discovery.factors import Parts, Rows, loadings, nmf, refitted, shares
from probes.discovery.null import beyond
from probes.discovery.observing import CHOOSE, MEASURE, Seen, group_of
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.sides import ROUNDED, SHAM, TUNED, Model, Side
from probes.discovery.surprise import usual_of
from probes.discovery.word_lists import WordLists, Words
from tv.stats.families import benjamini_hochberg

#: Places of all texts, entries of the vocabulary at them, and words that are taken apart, at most.
PLACES, ENTRIES, WORDS = 512, 2**25, 2048
TOPICS = 5
#: Words and places of every topic in the tables.
SHOWN = 8


@dataclass(frozen=True)
class _Topics:
    """A side's topics: by half, how much each gives every word, logits (rms over places); and what that makes."""

    ids: Int[Tensor, " words"]
    words: Float[Tensor, "halves topics words"]
    without: list[Float[Tensor, "topics words"]]  # of the half that measures, without one group of its texts each

    @property
    def weights(self) -> Floats:
        """(topics,): the rise that a topic gives all its words, logits (rms over places), on the half that measures."""
        return _weights(self.words[MEASURE])


@discovery_part("topics")
@dataclass
class TopicsOfRises(Part):
    """Readings `topic K`, from 0, and the table of topics."""

    streams: ClassVar[bool] = True
    context: Context
    found: dict[Side, _Topics] = field(default_factory=dict)
    rows: list[Float[Tensor, "n vocab"]] = field(default_factory=list)  # of the side that is seen
    half: list[Tensor] = field(default_factory=list)
    group: list[Tensor] = field(default_factory=list)
    at: list[Place] = field(default_factory=list)  # of the tuned model's
    where: list[dict[str, object]] = field(default_factory=list)
    share: Floats | None = None  # of the tuned model's rise on the half that measures, in each topic

    def __post_init__(self) -> None:
        models = self.context.pair.models
        self.vocab = min(len(model.get_input_embeddings().weight) for model in models)
        self.drawn = Drawn.of(self.context.texts.null, min(PLACES, ENTRIES // self.vocab), self.context.seed)

    def see(self, side: Side, seen: Seen) -> None:
        if not seen.in_null:
            return
        rows = self.drawn.rows(seen)
        self.rows.append(seen.shift[rows, : self.vocab].clamp(min=0).cpu())
        self.half.append(seen.half[rows])
        if side.name == TUNED:
            self.group.append(torch.tensor([group_of(item, GROUPS) for item in seen.encoded])[seen.text][rows])
            self.at += places(seen, rows)

    def close(self, side: Side, model: Model) -> None:
        half, rises = torch.cat(self.half), torch.cat(self.rows)
        self.rows, self.half = [], []
        choosing = rises[half == CHOOSE]
        ids = choosing.square().sum(0).topk(min(WORDS, self.vocab)).indices
        choosing, measuring = choosing[:, ids], rises[half == MEASURE][:, ids]
        if min(len(choosing), len(measuring)) <= TOPICS:
            return
        topics = nmf(choosing, TOPICS)
        topics = topics[shares(choosing, loadings(choosing, topics), topics).argsort(descending=True)]
        words = torch.stack([_words(choosing, topics), _words(measuring, topics)])
        without = list[Tensor]()
        if side.name == TUNED:
            group = torch.cat(self.group)[half == MEASURE]
            without = [_words(measuring[group != one], topics) for one in group.unique() if bool((group != one).any())]
            loads = loadings(rises[:, ids], topics)
            rows = largest_places(loads, self.at, SHOWN, self.context.pair.tokenizer)
            depth = self.context.pair.architecture.n_layers
            self.where = [{"depth": depth, "method": "topics"} | row for row in rows]
            self.share = shares(measuring, loadings(measuring, topics), topics).double().numpy()
        self.found[side] = _Topics(ids, words, without)

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        if Side(TUNED) not in self.found:
            return
        lists, intervals = self._lists()
        yield "discovered_words", lists.rows(self.context.pair.tokenizer, intervals)
        yield "topics", self._topics()
        yield "component_places", pd.DataFrame(self.where)

    def _lists(self) -> tuple[WordLists, dict[str, tuple[Floats, Floats, Floats]]]:
        """Every side's words, and intervals of the tuned model's over texts."""
        lists, intervals = WordLists("topics"), dict[str, tuple[Floats, Floats, Floats]]()
        peaks = {side: self._peak(found) for side, found in self.found.items() if side.name == SHAM}
        for side, found in self.found.items():
            mean, spread = (
                of.expand(2, self.vocab)[:, None, found.ids]
                for of in usual_of([peak for other, peak in peaks.items() if other != side])
            )
            scores = ((found.words - mean) / spread).double().numpy()
            left = [((of - mean[MEASURE]) / spread[MEASURE]).double().numpy() for of in found.without]
            for topic in range(TOPICS):
                words = Words.of(scores[CHOOSE, topic], scores[MEASURE, topic])
                lists.put(f"topic {topic}", side, replace(words, token_ids=found.ids.numpy()[words.token_ids]))
                if side.name == TUNED:
                    own = [of[topic, words.token_ids] for of in left]
                    intervals[f"topic {topic}"] = jackknifed(words.measured, own)
        return lists, intervals

    def _peak(self, found: _Topics) -> Float[Tensor, "halves vocab"]:
        """Of every token, the most that any topic gives it."""
        peak = torch.zeros(2, self.vocab)
        peak[:, found.ids] = found.words.amax(1).clamp(min=0)
        return peak

    def _topics(self) -> pd.DataFrame:
        tokenizer, own = self.context.pair.tokenizer, self.found[Side(TUNED)]
        by_side: dict[str, list[Floats]] = {}
        for side, found in self.found.items():
            by_side.setdefault(side.name, []).append(found.weights)
        shams = beyond(own.weights, by_side.get(SHAM, np.zeros((0, TOPICS))))
        noise = [of for name, draws in by_side.items() if name not in (TUNED, ROUNDED, SHAM) for of in draws]
        p = np.fmax(shams.p, beyond(own.weights, noise or np.zeros((0, TOPICS))).p)
        weight, lo, hi = jackknifed(own.weights, [_weights(of) for of in own.without])
        best = own.ids[own.words.sum(0).topk(SHOWN, dim=1).indices]
        rows: dict[str, object] = {
            "topic": range(TOPICS),
            "words": [tokenizer.decode(ids) for ids in best.tolist()],
            "share": self.share,
            "weight": weight,
            "lo": lo,
            "hi": hi,
        }
        for beside, name in (("sham", SHAM), ("random", "random"), ("floor", ROUNDED)):
            rows[f"weight_{beside}"] = largest(by_side, name, weight)
        return pd.DataFrame(rows | {"p": p, "q": benjamini_hochberg(p)})


def _words(rises: Rows, topics: Parts) -> Float[Tensor, "topics words"]:
    """The topics as these places have them: fitted again with their loadings, as large as they are there (rms)."""
    loads = loadings(rises, topics)
    return refitted(rises, loads, topics) * loads.square().mean(0).sqrt()[:, None]


def _weights(words: Float[Tensor, "topics words"]) -> Floats:
    return np.asarray(words.norm(dim=1).double().numpy())
