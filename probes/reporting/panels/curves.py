"""Sets of components moved together: by growing rankings, and at every depth."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting import cause_charts
from probes.reporting.causes import domains_in
from probes.reporting.chapter import Chapter, panel
from probes.reporting.evidence import one_metric
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import effect_metric_name, prompts_of


@panel("causes", order=50, needs=["curves"])
def curves(chapter: Chapter) -> Iterator[Panel]:
    """The metric as each ranking's top components are moved, beside random orders, and the areas of the curves."""
    rows, areas = (one_metric(chapter.rows(table)) for table in ("curves", "areas"))
    if rows.empty:
        return
    metric = effect_metric_name(str(rows.metric.iloc[0]))
    domains = domains_in(rows, chapter.evidence.effects, chapter.evidence.behaviour)
    lines = []
    for direction, family in rows.groupby("direction", sort=False):
        forth = str(direction).startswith("base")
        title = "tuned components put into the base" if forth else "components set back to the base"
        plots = [cause_charts.growing(family[family.domain == domain], metric, title) for domain in domains]
        name = "graft" if forth else "revert"
        lines.append(Figure(f"curve-{name}", f"{name.capitalize()} curve", plots))
    if len(areas):
        lines.append(Figure("areas", "Area of each curve, all prompts", [cause_charts.areas(areas)]))
    note = (
        "Components are moved together, the first n of each ranking. A ranking that finds the causes leaves the grey "
        "band of random orders early; one inside it is no better than chance. Area: the share of the whole change "
        "reached, mean over all n (1: all at once, 0: only at the end), with its 95 % interval over prompts; none "
        "where the metric hardly changes."
    )
    choices = list(map(prompts_of, domains))
    yield Panel("Which ranking finds the causes?", note, lines, choices, "prompts", wide=True)


@panel("causes", order=60, needs=["depth"])
def depth(chapter: Chapter) -> Iterator[Panel]:
    """The metric of two models joined at each depth."""
    rows = one_metric(chapter.rows("depth"))
    if rows.empty:
        return
    domains = domains_in(rows, chapter.evidence.effects, chapter.evidence.behaviour)
    metric = effect_metric_name(str(rows.metric.iloc[0]))
    plots = [cause_charts.by_cut(rows[rows.domain == domain], metric) for domain in domains]
    note = (
        "The layers below the cut come from one model, the others from the other. Where the tuned model below "
        "is enough, the base already reads what it writes; where it must be above, late layers read differently."
    )
    choices = list(map(prompts_of, domains))
    yield Panel("At which depth?", note, [Figure("depth", "", plots)], choices, "prompts", wide=True)
