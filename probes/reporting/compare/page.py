"""Several runs side by side: checkpoints of one training, domains, sizes. One page, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from probes.errors import RunError
from probes.reporting.compare.comparison import COMPARISON, Comparison
from probes.reporting.compare.entries import cautions, entries_of, entry_rows
from probes.reporting.compare.measures import measure_rows
from probes.reporting.compare.numbers import measures_table
from probes.reporting.compare.verdict import comparison_verdict
from probes.reporting.page import render
from probes.store.run import Run
from tv.runtime.atomic import replacing


def compare(runs: Sequence[str | Path | Run], *, to: str | Path, labels: Sequence[str] | None = None) -> Path:
    """Write one page that holds every tuned model of every run beside the others.

    Tuned models are in the order of `runs`, and differences are from the first. The file loads nothing, and is written
    whole or not at all.

    Args:
        runs: Finished runs, or their paths. Together they hold two tuned models or more.
        to: The HTML file to write.
        labels: Names for the runs, one each; without them a tuned model goes by its own name, or by its run's where two
            have the same.

    Returns:
        The file's path.

    Raises:
        RunError: Fewer than two tuned models, labels that do not fit, a path that is no run of this version, or a page
            that cannot be written.

    Examples:
        >>> probes.compare(["reports/demo"], to="compared.html").name
        'compared.html'
    """
    page = comparison_page(Comparison(entries_of(runs, labels)))
    with replacing(Path(to), RunError) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(to)


def comparison(runs: Sequence[str | Path | Run], *, labels: Sequence[str] | None = None) -> pd.DataFrame:
    """The numbers of `probes.compare` as a table.

    Args:
        runs: Finished runs, or their paths, as in `probes.compare`.
        labels: Names for the runs, one each.

    Returns:
        A row per `entry` (a tuned model), `measure` and `domain`: `value` with `lo hi` over its `n` prompts, and its
        `difference` from the first entry with `difference_lo difference_hi`, paired over the `n_shared` prompts that
        both were asked. Measures of the weights have the domain "", and no intervals; the domain "all" is every prompt.

    Raises:
        RunError: Fewer than two tuned models, labels that do not fit, or a path that is no run of this version.

    Examples:
        >>> numbers = probes.comparison(["reports/demo"])
        >>> numbers[numbers.measure == "relative_norm"].entry.tolist()
        ['medical', 'math']
    """
    return measure_rows(entries_of(runs, labels))


def comparison_page(compared: Comparison) -> str:
    """The page of a comparison, as HTML."""
    entries, doubts = compared.entries, cautions(compared.entries)
    panels = COMPARISON.drawn(compared, compared.tables)
    return render(
        "compare.html",
        [panel for section in panels.values() for panel in section],
        {},
        entries=entry_rows(entries),
        verdict=comparison_verdict(entries, compared.measures, compared.correlations, doubts),
        cautions=doubts,
        sections=COMPARISON.sections.values(),
        section_panels=panels,
        numbers=measures_table(compared.measures),
    )
