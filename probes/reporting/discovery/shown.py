"""What the page shows of a discovery, by section."""

from __future__ import annotations

from typing import Any

from probes.reporting.discovery.claims import claim_table, kind_table, topic_table
from probes.reporting.discovery.curves import curves_of
from probes.reporting.discovery.found import Found
from probes.reporting.discovery.grids import direction_table, excitation_table, lens_grids
from probes.reporting.discovery.readings import read_parts
from probes.reporting.discovery.samples import samples_of
from probes.reporting.discovery.sentences import three_sentences
from probes.reporting.discovery.states import component_table, moved_table, steering_table
from probes.reporting.discovery.texts import texts_of
from probes.reporting.panel import Fold, Section


def _section(id: str, name: str, title: str, template: str, intro: str = "", fold: Fold = "closed") -> Section:
    return Section(id, name, title, "", intro, f"discovery/{template}.html", fold, optional=True)


#: The sections of a discovery, each left out where the run has nothing for it.
SECTIONS = (
    _section("found", "In three sentences", "In three sentences", "found", fold="never"),
    _section("words", "Words", "Words that the tuned model favours", "words", fold="open"),
    _section("topics", "Topics", "Topics: words whose logits rise together", "tables"),
    _section("claims", "Claims", "Claims, tested on texts that did not suggest them", "tables"),
    _section("samples", "Samples", "Samples: what both write after the same beginning", "samples", fold="open"),
    _section("divergences", "Texts", "Texts: behind which tokens do the predictions part?", "divergences"),
    _section("lens-words", "Lens by layer", "Lens by layer: what mean Δh reads as", "lens"),
    _section("difference", "Δh", "Δh: the difference of the two models' states", "curves"),
    _section(
        "components",
        "Components of Δh",
        "Components of Δh: which directions has it over texts?",
        "tables",
        "They are kinds of places more often than subjects: no word of theirs counts that does not stand out above.",
    ),
    _section("moved", "Where states move", "Where do states move most?", "tables"),
    _section(
        "steering",
        "Steering",
        "Steering the base by mean Δh",
        "tables",
        "Mean Δh is added to the states of one depth, as long as it takes to move predictions by half a nat.",
    ),
    _section(
        "kind",
        "Kind of tuning",
        "What kind of tuning was it?",
        "tables",
        "Evidence, each number next to what it is compared with; none of it is a class.",
    ),
    _section(
        "t-words",
        "Directions of T",
        "Directions of T, read as tokens",
        "tables",
        "These claim nothing: the directions of any gradient read as words, those of shams as clearly as T's.",
    ),
    _section(
        "excitation",
        "What excites T",
        "Which texts excite the directions that T answers to?",
        "tables",
        "Own texts may have other inputs altogether: what random directions of the same matrix have is taken off. A "
        "direction stands out where no sham's is excited as much.",
    ),
)


def shown_of(found: Found) -> dict[str, Any]:
    """By id of a section: what its template shows; nothing where the run has nothing for it."""
    return {
        "found": three_sentences(found),
        "words": read_parts(found),
        "topics": topic_table(found),
        "claims": claim_table(found),
        "samples": samples_of(found),
        "divergences": texts_of(found),
        "lens-words": lens_grids(found),
        "difference": curves_of(found),
        "components": component_table(found),
        "moved": moved_table(found),
        "steering": steering_table(found),
        "kind": kind_table(found),
        "t-words": direction_table(found),
        "excitation": excitation_table(found),
    }
