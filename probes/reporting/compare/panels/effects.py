"""Causal effects of several entries: do the same components carry the change?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from probes.attribution.units import component_name
from probes.reporting.compare import charts
from probes.reporting.compare.arranging import SCALE, as_figures, side_by_side
from probes.reporting.compare.comparison import Comparison, compare_panel
from probes.reporting.compare.measures import OWN_DOMAIN
from probes.reporting.figures import Plot
from probes.reporting.panel import Figure, Panel, Table
from probes.reporting.words import effect_metric_name, interval, listing, number, prompts_of
from probes.store.schemas import ALL_DOMAINS
from tv.architecture.anatomy import in_order

#: Components that are shown one by one: those of the largest effects in any entry.
SHOWN = 14


@compare_panel("causes", order=10, needs=["effects"])
def effects(compared: Comparison) -> list[Panel]:
    """The largest effects, and maps of all, one version per method and set of prompts."""
    shown = compared.laid(lambda entry: entry.evidence.effects)
    if shown.empty:
        return []
    cuts = _cuts(compared, shown)
    maps = [
        side_by_side(
            compared, rows, "effect", "component", in_order(rows.component), centre=0.0, hover=["lo", "hi", "q"]
        )
        for rows in cuts.values()
    ]
    dots = [_largest(rows, compared.labels) for rows in cuts.values()]
    metrics = listing([effect_metric_name(str(name)) for name in dict.fromkeys(shown.metric)])
    note = (
        f"How far one component alone moves the {metrics} towards the tuned model, with 95 % intervals over prompts; "
        f"the {SHOWN} components whose effect is largest in any entry." + compared.lacking(shown)
    )
    choose, choices = "method and prompts", list(cuts)
    return [
        Panel("Effects by component", note, [Figure("effects", "", dots)], choices, choose, wide=True),
        Panel("Layer × component", SCALE, as_figures("effects-map", compared, maps), choices, choose),
    ]


@compare_panel("causes", order=20, needs=["prompt_effects"])
def agreement(compared: Comparison) -> Iterator[Panel]:
    """Rank correlations of every two entries' effects, as a matrix and as a table."""
    if compared.correlations.empty:
        return
    named = {
        f"{method}, {OWN_DOMAIN if domain == OWN_DOMAIN else prompts_of(str(domain))}": rows
        for (method, domain), rows in compared.correlations.groupby(["method", "domain"], sort=False)
    }
    cuts = dict(sorted(named.items(), key=lambda cut: -len(cut[1])))  # what most entries have comes first
    cells = [_correlation(name, row) for name, rows in cuts.items() for row in rows.to_dict("records")]
    columns = (
        "entry",
        "entry",
        "method and prompts",
        "ρ",
        "interval",
        "by chance",
        "p",
        "components",
        "shared prompts",
    )
    unlike = len(set(compared.layers.values())) > 1
    note = (
        "Spearman's ρ over components: 1 where two entries order them alike. Intervals resample the prompts that both "
        "were asked, or each one's own where they share none; “by chance” is where 95 % of ρ fall when components are "
        "shuffled. Noise between prompts pulls ρ towards 0, so compare it with the agreement of the two halves of one "
        "run's prompts in that run's report." + (" Entries of unlike depth are not correlated." if unlike else "")
    )
    matrices = []
    if len(compared.entries) > 2:
        plots = [charts.matrix(rows, compared.labels) for rows in cuts.values()]
        matrices.append(Figure("agreement-matrix", "Rank correlation of effects", plots))
    table = Table("agreement-table", "", columns, cells)
    yield Panel(
        "The same causes?", note, matrices, list(cuts) if matrices else [], "method and prompts", tables=[table]
    )


def _cuts(compared: Comparison, effects: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Effects by method and prompts, as the choices call them."""
    domains = {entry.label: entry.own_domain for entry in compared.entries if len(entry.evidence.effects)}
    cuts = {}
    measured = effects.groupby("method", sort=False).entry.nunique().sort_values(ascending=False, kind="stable")
    for method in measured.index:  # what most entries have comes first
        rows = effects[effects.method == method]
        cuts[f"{method}, {OWN_DOMAIN}"] = rows[rows.domain == rows.entry.map(domains)]
        for domain in sorted(dict.fromkeys(map(str, rows.domain)), key=lambda name: name != ALL_DOMAINS):
            cuts[f"{method}, {prompts_of(domain)}"] = rows[rows.domain == domain]
    return cuts


def _largest(effects: pd.DataFrame, labels: Sequence[str]) -> Plot:
    names = [component_name(layer, name) for layer, name in zip(effects.layer, effects.component, strict=True)]
    rows = effects.assign(name=names, size=effects.effect.abs())
    kept = rows.groupby("name")["size"].max().nlargest(SHOWN).index
    return charts.by_name(
        rows[rows.name.isin(kept)].sort_values(["layer", "component"]), "effect", "name", labels, title="effect"
    )


def _correlation(name: str, row: Mapping[Any, Any]) -> tuple[str, ...]:
    """A row of the table, as text."""
    ends = (interval(row["lo"], row["hi"]), interval(row["null_lo"], row["null_hi"]))
    counts = (str(row["n"]), str(row["n_shared"]))
    return (row["a"], row["b"], name, number(row["rho"], 2), *ends, number(row["p"], 2), *counts)
