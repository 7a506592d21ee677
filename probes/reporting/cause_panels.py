"""The causes and the link: effects of components, and the scatter that the reader fills."""

from __future__ import annotations

import pandas as pd

from probes.reporting import charts, figures
from probes.reporting.causes import domains_in
from probes.reporting.evidence import Evidence
from probes.reporting.panels import Figure, Panel
from probes.reporting.words import effect_metric_name, prompts_of


def cause_panels(key: str, evidence: Evidence) -> list[Panel]:
    """Effect maps and ranked components of each method, domain by domain, the one whose metric changed most first."""
    effects = evidence.effects
    if effects.empty:
        return []
    domains = domains_in(effects, effects, evidence.behaviour)
    cuts = {_prompts(domain, effects): effects[effects.domain == domain] for domain in domains}
    told = {
        "path": "Path: what this component's own step added along the way from base to tuned; the shares sum to the "
        "whole change.",
        "graft": "Graft: give the base this one component of the tuned model.",
        "revert": "Revert: take this one component away from the tuned model.",
    }
    panels = []
    for method in dict.fromkeys(effects.method):
        maps, ranked = [], []
        for table in cuts.values():
            own = table[table.method == method]
            maps.append(
                figures.heatmap(
                    own, "effect", "component", ("attn", "mlp"), evidence.n_layers, centre=0, hover=["lo", "hi", "q"]
                )
            )
            ranked.append(charts.ranked_effects(own))
        note = (
            f"{told.get(method, method)} The effect is how much the "
            f"{effect_metric_name(str(effects.metric.iloc[0]))} moves towards the tuned model. "
            "Dots with 95 % intervals over prompts; filled where q < 0.05 among the components shown together."
        )
        found = [
            Figure(f"{key}-{method}-map", "Effect, layer × component", maps),
            Figure(f"{key}-{method}-ranked", f"Components ranked by |effect| (at most {charts.RANKED})", ranked),
        ]
        panels.append(Panel(f"Causal effect by {method}", note, found, list(cuts) if len(cuts) > 1 else [], "prompts"))
    return panels


def _prompts(domain: str, effects: pd.DataFrame) -> str:
    n = effects[effects.domain == domain].n.iloc[0]
    name = prompts_of(domain)
    return f"{name} (n = {n:.0f})" if pd.notna(n) else name


def link_panels(key: str, evidence: Evidence) -> list[Panel]:
    """The scatter that the reader fills."""
    if evidence.link.empty:
        return []
    note = (
        "A point is a module, or a component, of one layer. Pick a measure for each axis; point at a dot for its place."
    )
    figure = Figure(f"{key}-scatter", "", [charts.empty_scatter()], "scatter")
    return [Panel("Weight measure against activation or causal measure", note, [figure], wide=True)]
