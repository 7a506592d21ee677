"""What the tuned models of several entries answer."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting.compare import charts
from probes.reporting.compare.arranging import SHARE
from probes.reporting.compare.comparison import Comparison, compare_panel
from probes.reporting.compare.measures import BEHAVIOUR, MEASURES
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import metric_name
from probes.store.schemas import ALL_DOMAINS


@compare_panel("behaviour", order=10, needs=["behaviour"])
def behaviour(compared: Comparison) -> Iterator[Panel]:
    """What the tuned models answer, domain by domain, beside the base."""
    measures, values = compared.measures, compared.laid(lambda entry: entry.evidence.behaviour)
    rows = measures[measures.measure.isin(list(BEHAVIOUR)) & (measures.domain != ALL_DOMAINS)]
    if rows.empty:
        return
    plots = {
        metric_name(metric): charts.by_name(
            rows[rows.measure == metric],
            "value",
            "domain",
            compared.labels,
            title=metric_name(metric),
            level=values[values.metric == metric].groupby("domain").base.mean().dropna().to_dict(),
            beside="base, mean over entries",
            axis=SHARE if MEASURES[metric].share else {},
        )
        for metric in BEHAVIOUR
        if (rows.measure == metric).any()
    }
    note = "The tuned models' values with 95 % intervals over prompts." + compared.lacking(values)
    figure = Figure("behaviour-by-domain", "", list(plots.values()))
    yield Panel("Behaviour by domain", note, [figure], list(plots), "metric", wide=True)
