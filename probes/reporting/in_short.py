"""The verdict of a run that people and programs read first: of each tuned model sentences, examples and effects."""

from __future__ import annotations

from collections.abc import Sequence

from probes.reporting.chapter import Chapter
from probes.reporting.claim import sentence
from probes.reporting.discovery.found import is_alone
from probes.reporting.discovery.sentences import three_sentences
from probes.reporting.named import named_effects, named_method
from probes.reporting.verdict import limits
from probes.store.verdict import Verdict

#: The largest effects that are told.
LARGEST = 5


def verdicts_of(chapters: Sequence[Chapter]) -> dict[str, Verdict]:
    """The verdict on every tuned model, by its name."""
    return {chapter.evidence.tuned: verdict_of(chapter) for chapter in chapters}


def verdict_of(chapter: Chapter) -> Verdict:
    """The verdict on one tuned model; of a run that only discovers, in the words of its discovery."""
    evidence, told = chapter.evidence, chapter.summary
    learnt, cannot_show = sentence(told.learnt), limits(evidence)
    if chapter.found is not None and is_alone(chapter.run.tables):
        found, _, trust = three_sentences(chapter.found)
        learnt, cannot_show = " ".join(found.sentences), trust.sentences
    return Verdict(
        evidence.tuned,
        learnt,
        sentence(told.lost),
        sentence(told.where) or "Not measured.",
        sentence(told.trained),
        tuple(chapter.examples),
        tuple(cannot_show),
        tuple(named_effects(evidence, named_method(evidence))[:LARGEST]),
    )
