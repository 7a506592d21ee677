"""The causes and the behaviour of several entries side by side, their order, and all of it as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from probes.attribution.units import component_name
from probes.reporting.compare import charts
from probes.reporting.compare.entries import ORDERED, Entry, lacking, laid
from probes.reporting.compare.measures import ACTIVATIONS, BEHAVIOUR, MEASURES, OWN_DOMAIN, WEIGHTS
from probes.reporting.compare.panels import SCALE, SHARE, as_figures, labels_of, layers_of, side_by_side
from probes.reporting.figures import Plot
from probes.reporting.panels import Figure, Panel, Table
from probes.reporting.words import effect_metric_name, interval, listing, metric_name, number, prompts_of
from probes.store.schemas import ALL_DOMAINS

#: Components that are shown one by one: those of the largest effects in any entry.
SHOWN = 14


def cause_panels(entries: Sequence[Entry], correlations: pd.DataFrame) -> list[Panel]:
    """Effects by component side by side, and how far their order agrees."""
    effects = laid(entries, lambda entry: entry.evidence.effects)
    if effects.empty:
        return []
    cuts = _cuts(entries, effects)
    maps = [
        side_by_side(entries, rows, "effect", "component", ("attn", "mlp"), centre=0.0, hover=["lo", "hi", "q"])
        for rows in cuts.values()
    ]
    dots = [_largest(rows, labels_of(entries)) for rows in cuts.values()]
    metrics = listing([effect_metric_name(str(name)) for name in dict.fromkeys(effects.metric)])
    note = (
        f"How far one component alone moves the {metrics} towards the tuned model, with 95 % intervals over prompts; "
        f"the {SHOWN} components whose effect is largest in any entry." + lacking(entries, effects)
    )
    choose, choices = "method and prompts", list(cuts)
    panels = [
        Panel("Effects by component", note, [Figure("effects", "", dots)], choices, choose, wide=True),
        Panel("Layer × component", SCALE, as_figures("effects-map", entries, maps), choices, choose),
    ]
    return [*panels, _agreement(entries, correlations)] if len(correlations) else panels


def behaviour_panels(entries: Sequence[Entry], measures: pd.DataFrame) -> list[Panel]:
    """What the tuned models answer, domain by domain, beside the base."""
    behaviour = laid(entries, lambda entry: entry.evidence.behaviour)
    rows = measures[measures.measure.isin(list(BEHAVIOUR)) & (measures.domain != ALL_DOMAINS)]
    if rows.empty:
        return []
    plots = {
        metric_name(metric): charts.by_name(
            rows[rows.measure == metric],
            "value",
            "domain",
            labels_of(entries),
            title=metric_name(metric),
            level=behaviour[behaviour.metric == metric].groupby("domain").base.mean().dropna().to_dict(),
            beside="base, mean over entries",
            axis=SHARE if MEASURES[metric].share else {},
        )
        for metric in BEHAVIOUR
        if (rows.measure == metric).any()
    }
    note = "The tuned models' own values with 95 % intervals over prompts." + lacking(entries, behaviour)
    figure = Figure("behaviour-by-domain", "", list(plots.values()))
    return [Panel("Behaviour by domain", note, [figure], list(plots), "metric", wide=True)]


def order_panels(entries: Sequence[Entry], measures: pd.DataFrame) -> list[Panel]:
    """Every measure over the entries in the order given; nothing for two, which have no course."""
    if len(entries) < ORDERED:
        return []
    panels = []
    for title, names in (("Weights", WEIGHTS), ("Activations", ACTIVATIONS), ("Behaviour", BEHAVIOUR)):
        found = []
        for name in names:
            rows = measures[measures.measure == name].groupby("domain", sort=False).filter(_is_course)
            rows = rows.assign(prompts=rows.domain.map(prompts_of) if title != "Weights" else "")
            if rows.entry.nunique() >= ORDERED:
                axis = SHARE if MEASURES[name].share else {}
                plot = charts.over_order(rows, "prompts", labels_of(entries), axis=axis)
                found.append(Figure(f"order-{name}", MEASURES[name].words, [plot]))
        if found:
            note = (
                "No interval: no prompt has a part in it." if title == "Weights" else "A line a domain; 95 % intervals."
            )
            panels.append(Panel(title, note, found))
    return panels


def measures_table(measures: pd.DataFrame) -> Table:
    """Every value, and its difference from the first entry."""
    order = {name: i for i, name in enumerate(MEASURES)}
    ranked = measures.assign(rank=measures.measure.map(order)).sort_values(["rank", "domain"], kind="stable")
    rows = [_values(row) for row in ranked.to_dict("records")]
    columns = ("measure", "prompts", "entry", "value", "interval", "n", "from the first", "interval", "shared n")
    return Table("numbers-table", "", columns, rows)


def _is_course(rows: pd.DataFrame) -> bool:
    """Whether more than one entry has it."""
    return rows.entry.nunique() > 1


def _values(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """A row of the table of all numbers, as text."""
    measure, n = MEASURES[row["measure"]], [f"{row[name]:.0f}".replace("nan", "") for name in ("n", "n_shared")]
    own = (measure.form(row["value"]), interval(row["lo"], row["hi"], measure.form), n[0])
    ends = interval(row["difference_lo"], row["difference_hi"], measure.change)
    apart = (measure.change(row["difference"]).replace("–", ""), ends, n[1])
    return (measure.words, prompts_of(row["domain"]) if n[0] else "", row["entry"], *own, *apart)


def _cuts(entries: Sequence[Entry], effects: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Effects by method and prompts, as the choices call them."""
    own = {entry.label: entry.own_domain for entry in entries if len(entry.evidence.effects)}
    found = {}
    measured = effects.groupby("method", sort=False).entry.nunique().sort_values(ascending=False, kind="stable")
    for method in measured.index:  # what most entries have comes first
        rows = effects[effects.method == method]
        found[f"{method}, {OWN_DOMAIN}"] = rows[rows.domain == rows.entry.map(own)]
        for domain in sorted(dict.fromkeys(map(str, rows.domain)), key=lambda name: name != ALL_DOMAINS):
            found[f"{method}, {prompts_of(domain)}"] = rows[rows.domain == domain]
    return found


def _largest(effects: pd.DataFrame, labels: Sequence[str]) -> Plot:
    names = [component_name(layer, name) for layer, name in zip(effects.layer, effects.component, strict=True)]
    rows = effects.assign(name=names, size=effects.effect.abs())
    kept = rows.groupby("name")["size"].max().nlargest(SHOWN).index
    return charts.by_name(
        rows[rows.name.isin(kept)].sort_values(["layer", "component"]), "effect", "name", labels, title="effect"
    )


def _agreement(entries: Sequence[Entry], correlations: pd.DataFrame) -> Panel:
    labels = labels_of(entries)
    named = {
        f"{method}, {OWN_DOMAIN if domain == OWN_DOMAIN else prompts_of(str(domain))}": rows
        for (method, domain), rows in correlations.groupby(["method", "domain"], sort=False)
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
    unlike = len(set(layers_of(entries).values())) > 1
    note = (
        "Spearman's ρ over components: 1 where two entries order them alike. Intervals resample the prompts that both "
        "were asked, or each one's own where they share none; “by chance” is where 95 % of ρ fall when components are "
        "shuffled. Noise between prompts pulls ρ towards 0, so compare it with the agreement of the two halves of one "
        "run's prompts in that run's report." + (" Entries of unlike depth are not correlated." if unlike else "")
    )
    figures = []
    if len(entries) > 2:
        plots = [charts.matrix(rows, labels) for rows in cuts.values()]
        figures.append(Figure("agreement-matrix", "Rank correlation of effects", plots))
    table = Table("agreement-table", "", columns, cells)
    return Panel("The same causes?", note, figures, list(cuts) if figures else [], "method and prompts", tables=[table])


def _correlation(name: str, row: Mapping[Any, Any]) -> tuple[str, ...]:
    """A row of the table, as text."""
    ends = (interval(row["lo"], row["hi"]), interval(row["null_lo"], row["null_hi"]))
    counts = (str(row["n"]), str(row["n_shared"]))
    return (row["a"], row["b"], name, number(row["rho"], 2), *ends, number(row["p"], 2), *counts)
