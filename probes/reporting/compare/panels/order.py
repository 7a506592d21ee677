"""Every measure over the entries in the order given."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.reporting.compare import charts
from probes.reporting.compare.arranging import SHARE
from probes.reporting.compare.comparison import Comparison, compare_panel
from probes.reporting.compare.entries import ORDERED
from probes.reporting.compare.measures import ACTIVATIONS, BEHAVIOUR, MEASURES, WEIGHTS
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import prompts_of


@compare_panel("order", order=10)
def courses(compared: Comparison) -> Iterator[Panel]:
    """Every measure over the entries in the order given; nothing for two, which have no course."""
    if len(compared.entries) < ORDERED:
        return
    measures = compared.measures
    for title, names in (("Weights", WEIGHTS), ("Activations", ACTIVATIONS), ("Behaviour", BEHAVIOUR)):
        lines = []
        for name in names:
            rows = measures[measures.measure == name].groupby("domain", sort=False).filter(_is_course)
            rows = rows.assign(prompts=rows.domain.map(prompts_of) if title != "Weights" else "")
            if rows.entry.nunique() >= ORDERED:
                axis = SHARE if MEASURES[name].share else {}
                plot = charts.over_order(rows, "prompts", compared.labels, axis=axis)
                lines.append(Figure(f"order-{name}", MEASURES[name].words, [plot]))
        if lines:
            note = (
                "No interval: prompts play no part." if title == "Weights" else "One line per domain; 95 % intervals."
            )
            yield Panel(title, note, lines)


def _is_course(rows: pd.DataFrame) -> bool:
    """Whether more than one entry has it."""
    return rows.entry.nunique() > 1
