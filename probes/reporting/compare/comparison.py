"""What the panels of the comparison read: its entries, and their numbers side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from probes.reporting.compare import entries as read
from probes.reporting.compare.entries import Entry
from probes.reporting.compare.measures import effect_correlations, measure_rows
from probes.reporting.panel import Panels, Section

_ABSENT = "Not measured in any of these runs."

#: The panels of the comparison's page. Verdict and entries come above these sections, all numbers below them.
COMPARISON: Panels[Comparison] = Panels(
    "comparison panel",
    "probes.reporting.compare.panels",
    [
        Section("behaviour", "Behaviour", "Behaviour: what do they answer?", _ABSENT, fold="open"),
        Section("causes", "Causes", "Causes: do the same components carry it?", _ABSENT),
        Section("weights", "Weights", "Weights: did the same places move?", _ABSENT),
        Section("activations", "Activations", "Activations: what ran differently?", _ABSENT),
        Section(
            "order",
            "In their order",
            "In their order",
            "A course needs three entries.",
            "The entries from left to right as they were given. A line between them means something only where the "
            "order does: checkpoints of one training, sizes, doses.",
        ),
    ],
)
#: The decorator of a panel of the comparison; its `needs` are tables that at least one run must have.
compare_panel = COMPARISON.panel


@dataclass(frozen=True)
class Comparison:
    """Every tuned model of every run, in the order given."""

    entries: Sequence[Entry]

    @cached_property
    def measures(self) -> pd.DataFrame:
        """A row per entry × measure × domain; see `measure_rows`."""
        return measure_rows(self.entries)

    @cached_property
    def correlations(self) -> pd.DataFrame:
        """A row per two entries × method × domain; see `effect_correlations`."""
        return effect_correlations(self.entries)

    @property
    def labels(self) -> list[str]:
        """The labels of the entries."""
        return [entry.label for entry in self.entries]

    @property
    def layers(self) -> dict[str, int]:
        """How many blocks each entry has, by its label."""
        return {entry.label: entry.evidence.n_layers for entry in self.entries}

    @property
    def tables(self) -> set[str]:
        """The tables that at least one run has."""
        return {table for entry in self.entries for table in entry.run.tables}

    def laid(self, rows: Callable[[Entry], pd.DataFrame]) -> pd.DataFrame:
        """The rows of all entries, with the label of each as `entry`."""
        return read.laid(self.entries, rows)

    def lacking(self, rows: pd.DataFrame) -> str:
        """Which entries have no row here, as a sentence to end a note with."""
        return read.lacking(self.entries, rows)
