"""From a finding to a metric: what was discovered, as effects of components are measured on it.

A finding is one of three:

- words, `discovered:PART/READING`: those of a reading that stand out. The metric is their mean logit less the mean
  over the vocabulary, a mean over the places that the reading is of: those that its name begins with (`first`, `bos`,
  `far`), the text's last token of `spoken`, the largest KL of `divergences`, else all tokens that were read. Without a
  reading it is the part's with the most such words.
- a direction, `discovered:difference_lens/PLACE`: how far logits lie along what the base's lens makes of mean Δh of the
  last depth at that place, a mean over such places.
- places, `discovered:divergences` (where a text has its largest KL) and `discovered:triggers` (from the first word on
  that stands out as one before large KL): KL(tuned ‖ model) there, nats, a mean over them.

Texts that chose words or a direction are left out: effects are measured on the other half, and on texts that the
discovery did not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from probes.attribution.finding import DISCOVERED, Finding
from probes.capture.pair import Pair
from probes.discovery.differences import Sums, add, kinds_of_place, logits_of
from probes.discovery.found import (
    DIVERGENCES,
    LENS,
    TRIGGERS,
    Named,
    require_same_tokens,
    source_of,
    tuned_in,
    with_a_finding,
    words_found,
)
from probes.discovery.observing import CHOOSE, MEASURE, Seen
from probes.discovery.part import PARTS, parts_of
from probes.discovery.presence import LONGEST
from probes.discovery.sides import TUNED, Side, Sides
from probes.errors import NothingFound, RunError, SuiteError
from probes.store.run import Run
from probes.suite import Suite
from tv.checkpoints.streamed import is_streamed
from tv.errors import choices
from tv.prompts.encoding import Encoded, batches


def is_discovered(metric: str) -> bool:
    """Whether a metric is a finding of a discovery."""
    return metric.startswith(DISCOVERED)


def require_finding(suite: Suite, stages: Sequence[str]) -> None:
    """Raise InputError, before any work, where the metric of effects is one that no discovery will find, or has."""
    wanted = suite.attribute
    if wanted is None or not is_discovered(wanted.metric):
        return
    named = Named.of(wanted.metric)
    part = DIVERGENCES if named.part == TRIGGERS else named.part
    if part not in PARTS:
        raise SuiteError(f"attribute: metric {named}: no part {part!r}{choices(part, PARTS)}")
    if wanted.discovered is not None:
        source = source_of(wanted.discovered)
        with_a_finding(suite.tuned, partial(words_found, source, named))
    elif suite.discover is None or "discover" not in stages:
        raise SuiteError(
            f"attribute: metric {named} is read from a discovery: add a section discover: and its stage, or name an "
            "earlier run, discovered: RUN"
        )
    elif part not in parts_of(suite.discover):
        raise SuiteError(f"attribute: metric {named}: add {part} to the parts of discover:")


def require_readable(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RunError, before any work, where an earlier run's finding is of another tokenizer than the base's."""
    wanted = suite.attribute
    if wanted is not None and is_discovered(wanted.metric) and wanted.discovered is not None:
        require_same_tokens(source_of(wanted.discovered), tokenizer)


def finding_of(
    source: Run,
    metric: str,
    tuned: str,
    pair: Pair,
    *,
    texts: Sequence[Encoded],
    encoded: Sequence[Encoded],
    batch_size: int,
) -> Finding:
    """A finding of a run, to be read on prompts.

    Args:
        source: The run that discovered it.
        metric: Its name.
        tuned: The tuned model's name; a run with a single one need not have it.
        pair: The models whose effects are measured.
        texts: What the discovery read.
        encoded: The prompts on which effects are measured.
        batch_size: Texts in one forward pass.

    Returns:
        Its tokens, and the places of those prompts that did not choose them.

    Raises:
        RunError: There is no such finding, or no prompt to measure it on.
    """
    named = Named.of(metric)
    rows = words_found(source, named, tuned)
    words = rows.token_id.to_numpy(np.int64)
    if len(words):
        named = replace(named, reading=str(rows.reading.iloc[0]))
    read = _Read(source, named, tuned_in(source, tuned), pair, texts, words)
    vocab = min(len(model.get_input_embeddings().weight) for model in pair.models)
    places = read.places(encoded)
    if named.is_direction:
        along = read.direction(vocab, batch_size)
        return Finding(places, np.arange(vocab), along, vocab)
    ids = words[:0] if named.is_places else words
    return Finding(places, ids, np.full(len(ids), 1 / max(len(ids), 1)), vocab)


@dataclass(frozen=True)
class _Read:
    """What a discovery read, and where a finding of it is."""

    source: Run
    named: Named
    tuned: str
    pair: Pair
    texts: Sequence[Encoded]
    words: NDArray[np.int64]

    @cached_property
    def longest(self) -> int:
        return int(self.source.manifest["suite"]["discover"]["longest"])

    @cached_property
    def halves(self) -> dict[str, int]:
        """By prompt that the discovery read."""
        where = [("tuned", "==", self.tuned)]
        rows = self.source.df("discovered_texts", columns=["prompt_id", "half"], where=where)
        return dict(zip(rows.prompt_id.astype(str), rows.half.astype(int), strict=True))

    @cached_property
    def known(self) -> dict[str, str]:
        """The discovery's prompts by their text: ids alone may be another run's. Of equal texts, one that chose."""
        read = [item for item in self.texts if item.prompt.id in self.halves]
        read.sort(key=lambda item: self.halves[item.prompt.id] == CHOOSE)
        return {item.prompt.text: item.prompt.id for item in read}

    @cached_property
    def largest(self) -> dict[str, int]:
        """By prompt, where its KL is largest."""
        rows = self.source.df(DIVERGENCES, columns=["prompt_id", "pos"], where=[("tuned", "==", self.tuned)])
        return dict(zip(rows.prompt_id.astype(str), rows.pos.astype(int), strict=True))

    def places(self, encoded: Sequence[Encoded]) -> dict[str, tuple[int, ...]]:
        """Of every prompt that did not choose and has some. Raises NothingFound where there is none."""
        places = {item.prompt.id: tuple(self._at(item)) for item in encoded if not self._chose(item)}
        if not any(places.values()):
            raise NothingFound(f"{self.named}: no prompt has a place where it is read; use texts of its discovery")
        return {prompt: own for prompt, own in places.items() if own}

    def _chose(self, item: Encoded) -> bool:
        by_kl = self.named.part == DIVERGENCES and self.named.is_places  # nothing was chosen
        return not by_kl and self.halves.get(self.known.get(item.prompt.text, ""), MEASURE) == CHOOSE

    def _at(self, item: Encoded) -> Sequence[int]:
        text = range(min(item.n_text, self.longest))
        part, kind = self.named.part, self._kind
        if kind:
            before = int(item.ids[0] == self.pair.tokenizer.bos_token_id)
            return [pos for pos in text if kinds_of_place(pos - before)[kind]]
        if part == DIVERGENCES:
            found = self.largest.get(self.known.get(item.prompt.text, ""))
            return [] if found is None else [found]
        if part == TRIGGERS:
            return text[next((pos for pos in text if item.ids[pos] in self.words), len(text)) :]
        return [min(item.n_text, self.longest, LONGEST) - 1] if part == "spoken" else text

    @property
    def _kind(self) -> str:
        """The kind of place that a reading's name begins with; that of the literature's lens is `first`."""
        first = self.named.reading.split(" ")[0].replace("paper", "first")
        return first if self.named.part in (LENS, "patchscope") and first in kinds_of_place(0) else ""

    def direction(self, vocab: int, batch_size: int) -> NDArray[np.float64]:
        """What the base's lens makes of mean Δh of the last depth, on the texts that choose, at length 1."""
        if is_streamed(self.pair.base):
            raise RunError(f"{self.named}: a direction is read off models in memory; leave --stream out")
        bos = self.pair.tokenizer.bos_token_id
        own = [item for item in self.texts if self.halves.get(item.prompt.id) == CHOOSE]
        cut = [replace(item, ids=item.ids[: min(item.n_text, self.longest)]) for item in own]
        sides, sums = Sides(self.pair, cut, batch_size, 0), dict[str, Sums]()
        with sides.on(Side(TUNED)) as model:
            for batch in batches(cut, batch_size, self.pair.pad_id):
                half = (CHOOSE,) * len(batch.encoded)
                add(sums, Seen(sides.base(batch), model.read(batch), batch.encoded, half, True), bos)
        at = sums[self.named.reading]
        reader = sides.base_model.reader
        along = logits_of(reader, at.mean(CHOOSE)[-1:], at.usual[-1:], vocab)[0].double().numpy()
        return along / max(float(np.linalg.norm(along)), 1e-30)
