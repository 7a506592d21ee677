"""The effects of single components that may be named: the report, the run's verdict and comparisons name no others."""

from __future__ import annotations

from probes.attribution.units import component_name
from probes.reporting.causes import leaders, nothing_to_name, shown_domain, told_method
from probes.reporting.evidence import Evidence
from probes.reporting.words import effect_metric_name
from probes.store.verdict import Effect


def named_method(evidence: Evidence) -> str:
    """The method whose effects are told first; empty where none names a component."""
    if evidence.effects.empty:
        return ""
    shown = evidence.effects[evidence.effects.domain == shown_domain(evidence.effects, evidence.behaviour)]
    return "" if nothing_to_name(shown) else told_method(shown)


def named_effects(evidence: Evidence, method: str) -> list[Effect]:
    """The effects by one method that may be named, largest first, on the prompts where the metric changed most."""
    effects = evidence.effects
    if effects.empty:
        return []
    domain = shown_domain(effects, evidence.behaviour)
    shown = effects[effects.domain == domain]
    if nothing_to_name(shown):
        return []
    metric = effect_metric_name(str(effects.metric.iloc[0]))
    return [
        Effect(
            component_name(row.layer, row.component),
            method,
            metric,
            domain,
            int(row.n),
            *map(float, (row.effect, row.lo_all, row.hi_all)),
        )
        for row in leaders(shown[shown.method == method]).itertuples()
    ]
