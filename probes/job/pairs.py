"""The pairs of a job: opened and checked before any is loaded, with what their tokenizers make of the prompts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from probes.capture.loading import Pairs
from probes.capture.pair import require_sites
from probes.errors import SuiteError
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.own_tokenizer import own_notes, require_meanings, same_tokens
from tv.checkpoints.pairing import PairFacts, WeightPair, alike, check_pair
from tv.matching.matching import match_pair
from tv.prompts.behaviour import require_rows
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt
from tv.prompts.placeholders import placeholders_of, require_text
from tv.runtime.compute import Compute


@dataclass(frozen=True)
class Opened:
    """A checked pair of checkpoints, not yet loaded as live models."""

    name: str
    base: Checkpoint
    tuned: Checkpoint
    facts: PairFacts
    sameness: Mapping[str, Any] | None = None  # where the suite aligns; see `tv.matching.sameness.Sameness`

    @property
    def weights(self) -> WeightPair:
        """The weights of both, read as they are asked for."""
        return WeightPair(self.base, self.tuned, self.facts)


def open_pairs(models: Pairs) -> list[Opened]:
    """Open and check every pair of a suite, before any is loaded.

    Raises CheckpointError where two are no pair, ArchitectureError where no activations can be read.
    """
    suite = models.suite
    require_sites(models.opened().architecture)
    base, *opened = alike([models.opened(), *map(models.opened, suite.tuned)])
    pairs = [Opened(name, base, one, check_pair(base, one)) for name, one in zip(suite.tuned, opened, strict=True)]
    return [_aligned(pair) for pair in pairs] if suite.align else pairs


def _aligned(pair: Opened) -> Opened:
    found = match_pair(pair.base, pair.tuned, compute=Compute(progress=False))
    return replace(pair, tuned=found.tuned, sameness=found.sameness.as_dict())


def noted(pair: Opened, models: Pairs, prompts: Sequence[Prompt]) -> Opened:
    """The pair, with notes of what the tuned model's own tokenizer makes of the prompts.

    Raises PromptError for a prompt with an id that is another token to the tuned model, that is no row of a model's
    embedding or that stands for a picture, and SuiteError where each is to read its own tokens and one has none.
    """
    if pair.facts.tokenizer == "not compared" and models.suite.tokenizer == "own":
        raise SuiteError(f"tokenizer: own: {pair.facts.notes[0]}")
    alone = models.suite.tokenizer == "own"
    shared = models.tokenizer
    differs = pair.facts.tokenizer not in ("same", "not compared")
    own = models.own_tokenizer(pair.name) if alone or differs else shared
    for model, words in ((pair.base, shared), (pair.tuned, own if alone else shared)):
        rows = model.architecture.vocab_size
        if max(words.get_vocab().values(), default=0) >= rows or placeholders_of(model.config):
            encoded = encode(prompts, words, sys.maxsize)
            require_rows(encoded, words, rows)
            require_text(encoded, words, model.config)
    if not differs:
        return pair
    if not alone:
        require_meanings(prompts, shared, own)
    reads = "each model reads its own tokens" if alone else "the base's tokenizer encodes the prompts for both"
    said = own_notes(prompts, shared, own) or [same_tokens(prompts)]
    notes = (*pair.facts.notes, *said, reads)
    return replace(pair, facts=replace(pair.facts, notes=notes))
