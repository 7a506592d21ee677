"""Causal effects: of components, of what they consist of, and beside their controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from probes.methods import METHODS, linked_methods
from probes.reporting import cause_charts, charts, figures
from probes.reporting.behind import behind
from probes.reporting.causes import domains_in
from probes.reporting.chapter import Chapter, panel
from probes.reporting.evidence import one_metric
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import effect_metric_name, prompts_of
from probes.store.schemas import ALL_DOMAINS
from tv.architecture.anatomy import in_order

#: The column that names a unit of each finer granularity, and what the axis of its map is called.
_FINER = {
    "module": ("module", "module"),
    "head": ("head", "head"),
    "kv_head": ("head", "key-value head"),
    "expert": ("expert", "expert"),
}
_HOVER = ["lo", "hi", "q", "n", "held_out"]


@panel("causes", order=10, needs=["effects"])
def effects(chapter: Chapter) -> Iterator[Panel]:
    """Maps and ranked components of each method, domain by domain, the one whose metric changed most first."""
    shown = chapter.evidence.effects
    if shown.empty:
        return
    domains = domains_in(shown, shown, chapter.evidence.behaviour)
    own = _by_prompt(chapter, "component", "component", str(shown.metric.iloc[0]))
    cuts = {_prompts(domain, shown): shown[shown.domain == domain] for domain in domains}
    metric = effect_metric_name(str(shown.metric.iloc[0]))
    for method in dict.fromkeys(shown.method):
        families = [cut[cut.method == method] for cut in cuts.values()]
        maps = [_map(family, "component", in_order(family.component), chapter, own) for family in families]
        note = (
            f"{METHODS[method].explains} The effect is how much the {metric} moves towards the tuned model. "
            "The largest of many effects is partly large by luck, so bars are 95 % intervals that hold for all "
            "components and methods at once; a dot is filled if its interval excludes 0. A cross is the effect of a "
            "component of that rank on prompts that were not used to rank it."
        )
        ranked = f"Components ranked by |effect| (at most {charts.RANKED})"
        plots = [
            Figure(f"{method}-map", "Effect, layer × component", maps),
            Figure(f"{method}-ranked", ranked, [charts.ranked_effects(family) for family in families]),
        ]
        yield Panel(f"Causal effect by {method}", note, plots, list(cuts) if len(cuts) > 1 else [], "prompts")


@panel("causes", order=15, needs=["effects"])
def other_methods(chapter: Chapter) -> Iterator[Panel]:
    """Maps of every method without a panel of its own, including methods of other packages."""
    rows = one_metric(chapter.rows("effects", where=[("granularity", "==", "component"), ("control", "==", "")]))
    rows = rows[~rows.method.isin(linked_methods()) & (rows.direction != "both")]  # both: sums of graft and revert
    if rows.empty:
        return
    domains = domains_in(rows, chapter.evidence.effects, chapter.evidence.behaviour)
    maps = []
    own = _by_prompt(chapter, "component", "component", str(rows.metric.iloc[0]))
    for i, ((method, direction), family) in enumerate(rows.groupby(["method", "direction"], sort=False)):
        order = in_order(family.component)
        plots = [_map(family[family.domain == domain], "component", order, chapter, own) for domain in domains]
        maps.append(Figure(f"method-{i}", f"{str(method).capitalize()}, {direction}", plots))
    note = (
        f"How much each component moves the {effect_metric_name(str(rows.metric.iloc[0]))} towards the tuned model, by "
        "these methods. What they approximate, and how far they agree with graft and revert, is shown below."
    )
    choices = list(map(prompts_of, domains))
    yield Panel("Effects by other methods", note, maps, choices if len(choices) > 1 else [], "prompts")


@panel("causes", order=30, needs=["effects"])
def finer(chapter: Chapter) -> Iterator[Panel]:
    """Layer × module, head or expert maps of every method that measured them."""
    rows = one_metric(chapter.rows("effects"))
    rows = rows[rows.granularity.isin(list(_FINER)) & (rows.control == "") & rows.method.isin(linked_methods())]
    if rows.empty:
        return
    domains, maps = domains_in(rows, chapter.evidence.effects, chapter.evidence.behaviour), []
    for (granularity, method), family in rows.groupby(["granularity", "method"], sort=False):
        column, word = _FINER[str(granularity)]
        family = family.assign(place=family[column].astype(str))
        order = list(dict.fromkeys((family if column == "module" else family.sort_values(column)).place))
        own = _by_prompt(chapter, str(granularity), column, str(family.metric.iloc[0]))
        own = own.assign(place=own[column].astype(str))
        plots = [_map(family[family.domain == domain], "place", order, chapter, own, word) for domain in domains]
        maps.append(Figure(f"{method}-{granularity}", f"{str(method).capitalize()}, layer × {word}", plots))
    note = "The same effects by module, head or expert: each component's effect is divided among its parts."
    yield Panel("Finer: modules, heads, experts", note, maps, list(map(prompts_of, domains)), "prompts", wide=True)


@panel("causes", order=40, needs=["effects"])
def controls(chapter: Chapter) -> Iterator[Panel]:
    """The whole T, and its largest components, beside vectors that only have its norms."""
    draws, whole = chapter.evidence.control_draws, chapter.evidence.whole
    if len(draws):
        real = whole[(whole.control == "") & (whole.method == "graft")]
        ordered = domains_in(draws, chapter.evidence.effects, chapter.evidence.behaviour)
        note = (
            "All of T added to the base, next to random vectors that share only its norm in every matrix. If T lies "
            "among them, it does no more than any change of that size."
        )
        figure = Figure("control-draws", "Effect of the whole vector", [cause_charts.among_draws(real, draws, ordered)])
        yield Panel("T beside its controls", note, [figure])
    rows = one_metric(chapter.rows("effects"))
    rows = rows[rows.granularity == "component"]
    controls = rows[rows.control != ""]
    if controls.empty:
        return
    domains = domains_in(controls, chapter.evidence.effects, chapter.evidence.behaviour)
    dots = []
    for (method, direction), family in controls.groupby(["method", "direction"], sort=False):
        real = rows[(rows.control == "") & (rows.method == method) & (rows.direction == direction)]
        plots = [
            cause_charts.beside_control(real[real.domain == domain], family[family.domain == domain])
            for domain in domains
        ]
        dots.append(Figure(f"{method}-controls", f"{str(method).capitalize()}, largest effects", plots))
    note = (
        "The same experiment with a random vector that shares only T's norm in every matrix. An effect that its "
        "control shows too is one of any change of that size. Bars are 95 % intervals over prompts."
    )
    yield Panel("Effects beside their controls", note, dots, list(map(prompts_of, domains)), "prompts")


def _prompts(domain: str, effects: pd.DataFrame) -> str:
    n = effects[effects.domain == domain].n.iloc[0]
    name = prompts_of(domain)
    return f"{name} (n = {n:.0f})" if pd.notna(n) else name


def _by_prompt(chapter: Chapter, granularity: str, column: str, metric: str) -> pd.DataFrame:
    """The effects of one granularity on every shown prompt."""
    where = [("granularity", "==", granularity), ("control", "==", ""), ("metric", "==", metric)]
    by = f"{column} method direction"
    return behind(chapter, "prompt_effects", f"{by} effect", {"value": "effect"}, by, where)


def _map(
    effects: pd.DataFrame, column: str, order: Sequence[str], chapter: Chapter, own: pd.DataFrame, axis: str = ""
) -> figures.Plot:
    """Effects by layer and `column`, and `own`, those of single prompts, behind them."""
    if len(effects):
        first = effects.iloc[0]
        own = own[own.method == first.method]
        own = own[own.direction == first.direction] if "direction" in effects else own
        own = own if first.domain == ALL_DOMAINS else own[own.domain == first.domain]
    n_layers = chapter.evidence.n_layers
    return figures.heatmap(effects, "effect", column, order, n_layers, centre=0, hover=_HOVER, axis=axis, behind=own)
