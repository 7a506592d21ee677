"""Path effects as steps from the base's metric to the tuned model's."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.reporting import cause_charts
from probes.reporting.causes import domains_in
from probes.reporting.chapter import Chapter, panel
from probes.reporting.evidence import one_metric
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import metric_name, prompts_of
from probes.store.schemas import ALL_DOMAINS


@panel("causes", order=20, needs=["effects", "behaviour"])
def waterfall(chapter: Chapter) -> Iterator[Panel]:
    """One bar per component, in the order in which the network computes."""
    evidence, rows = chapter.evidence, one_metric(chapter.rows("effects"))
    rows = rows[(rows.method == "path") & (rows.granularity == "component") & (rows.control == "")]
    rows = rows.dropna(subset="effect")  # where nothing changed, there are no shares
    if rows.empty:
        return
    metric, plots = str(rows.metric.iloc[0]), {}
    for domain in domains_in(rows, evidence.effects, evidence.behaviour):
        if ends := _ends(evidence.behaviour, metric, domain):
            steps = rows[rows.domain == domain]
            plots[prompts_of(domain)] = cause_charts.waterfall(steps, *ends, metric_name(metric))
    if not plots:
        return
    note = (
        "Path effects in the order in which the network computes. They sum to the whole change; “not covered” is what "
        "the quadrature along the path misses, and should be next to nothing."
    )
    figure = Figure("waterfall", "From base to tuned, component by component", list(plots.values()))
    yield Panel("Does it add up?", note, [figure], list(plots), "prompts", wide=True)


def _ends(behaviour: pd.DataFrame, metric: str, domain: str) -> tuple[float, float] | None:
    """Both models' mean of a metric over a domain's prompts."""
    rows = behaviour[(behaviour.metric == metric) & behaviour.base.notna()]
    rows = rows if domain == ALL_DOMAINS else rows[rows.domain == domain]
    if rows.empty:
        return None
    base, tuned = ((rows[name] * rows.n).sum() / rows.n.sum() for name in ("base", "tuned"))
    return float(base), float(tuned)
