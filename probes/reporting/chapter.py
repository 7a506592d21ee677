"""A chapter of the report, which its panels read: one tuned model of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
from markupsafe import Markup

from probes.reporting.discovery.found import Found, found_of
from probes.reporting.discovery.shown import SECTIONS
from probes.reporting.evidence import Evidence, gather, rows_of
from probes.reporting.examples import examples_of, first_choices, shares_that_differ
from probes.reporting.panel import Panels, Section
from probes.reporting.prompts import ShownPrompt, shown_prompts
from probes.reporting.summary import Summary, summary
from probes.store.run import Run
from probes.store.verdict import Example

_ABSENT = "Not measured in this run."

#: The panels of report.html. The verdict comes above these sections, the pair below them; both have no panels.
REPORT: Panels[Chapter] = Panels(
    "report panel",
    "probes.reporting.panels",
    [
        Section(
            "behaviour",
            "Behaviour",
            "Behaviour: what do the models answer?",
            _ABSENT,
            template="behaviour.html",
            fold="open",
        ),
        Section(
            "prompts",
            "Prompts",
            "Prompts: where do the predictions differ?",
            _ABSENT,
            template="prompts.html",
            fold="open",
        ),
        Section(
            "causes",
            "Causes",
            "Causes: which components carry the change?",
            _ABSENT,
            "Graft and revert are exact: weights are swapped and the model is run. They differ because components work "
            "together: revert shows a component that matters only when others have moved too, and graft does not.",
        ),
        Section("activations", "Activations", "Activations: what ran differently?", _ABSENT),
        Section(
            "weights",
            "Weights",
            "Weights: where did they move, and in which directions?",
            _ABSENT,
            "T is the difference of the two checkpoints. A large move need not matter, and alignment with the "
            "pretrained subspaces depends on matrix shape, so it is never shown without its null. Layers run upwards.",
        ),
        Section(
            "link",
            "Link",
            "Link: do larger weight changes go with larger effects?",
            _ABSENT,
            template="link.html",
        ),
        Section(
            "directions",
            "Directions",
            "Directions: is the change a few vectors?",
            "Not measured in this run.",
            "Steering, linear probes, subspaces of Δh, sparse features, attention patterns and distances between "
            "representations, each beside its nulls.",
            optional=True,
        ),
        *SECTIONS,
        Section(
            "experiments",
            "Experiments",
            "Experiments: does behaviour follow the vector?",
            Markup(
                "This run has none. To add one, run <code>tv experiment negation … -o RUN/experiments/negation</code>, "
                "then <code>probes report RUN</code>."
            ),
        ),
    ],
)
#: The decorator of a panel of the report.
panel = REPORT.panel


@dataclass(frozen=True)
class Chapter:
    """One tuned model of a run: its tables reduced to what the report shows, and the run for the rest."""

    key: str  # prefix of the chapter's ids on the page
    run: Run
    evidence: Evidence
    prompts: Sequence[ShownPrompt]
    found: Found | None = None  # where the run has a discovery
    choices: pd.DataFrame = field(default_factory=pd.DataFrame)  # how often first choices differ: without targets
    examples: Sequence[Example] = ()

    @cached_property
    def summary(self) -> Summary:
        """What fine-tuning did, in three sentences."""
        return summary(self.evidence, self.choices)

    @property
    def left_out(self) -> str:
        """What the proof on the live models left out of the tables, in a line; empty where nothing."""
        return "; ".join(self.run.manifest.get("left_out", []))

    def rows(self, table: str, columns: str = "", where: Sequence[tuple[str, str, object]] = ()) -> pd.DataFrame:
        """The rows of a table for this tuned model.

        Args:
            table: The table's name.
            columns: Names of columns, separated by spaces; all where none is named.
            where: More conditions, as `Run.df` takes them.

        Returns:
            The rows; an empty frame with these columns where the run lacks the table.
        """
        return rows_of(self.run, table, columns, [("tuned", "==", self.evidence.tuned), *where])


def chapters_of(run: Run) -> list[Chapter]:
    """A chapter for every tuned model of the run, in the suite's order."""
    return [_chapter(run, f"m{i}", tuned) for i, tuned in enumerate(run.manifest["suite"]["tuned"])]


def _chapter(run: Run, key: str, tuned: str) -> Chapter:
    evidence, choices = gather(run, tuned), pd.DataFrame()
    if evidence.behaviour.base.isna().all():
        choices = shares_that_differ(first_choices(run, tuned))
    prompts, examples = shown_prompts(run, tuned), examples_of(run, tuned)
    return Chapter(key, run, evidence, prompts, found_of(run, tuned), choices, examples)
