"""One tuned model's part of the report: its verdict, and sections with figures and what to make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from probes.attribute import component_name, focus
from probes.report import figures, tables, verdict
from probes.schemas import SCHEMAS
from probes.store import Run

_SIDES = ("left", "right")
_SIDE_NAMES = {"left": "output side", "right": "input side"}


@dataclass(frozen=True)
class Figure:
    """A figure with its place in the page."""

    id: str
    title: str
    note: str
    plot: go.Figure
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph on how to read what follows, and the figures."""

    id: str
    title: str
    reading: str
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Chapter:
    """Everything the report says of one tuned model."""

    id: str
    tuned: str
    verdict: list[str]
    sections: list[Section]
    behaviour: list[dict[str, Any]]
    correlations: list[dict[str, Any]]
    prompts: list[tables.ShownPrompt]


def chapter(run: Run, tuned: str) -> Chapter:
    """Read a run's tables for one tuned model and arrange them. A table that the run lacks leaves its section empty."""
    key = f"m{list(run.manifest['suite']['tuned']).index(tuned)}"
    whole = [("tuned", "==", tuned), ("head", "==", -1)]
    link = _table(run, "link", [("tuned", "==", tuned)])
    alignment = _table(run, "alignment", whole)
    effects = _table(run, "effects", whole)
    effects = effects[effects.domain == focus(effects)] if len(effects) else effects
    summary = tables.behaviour_summary(run, tuned)
    gated = bool(run.manifest["architecture"]["gated"])
    sentences = [
        verdict.behaviour_sentence(summary),
        verdict.weights_sentence(link),
        verdict.alignment_sentence(alignment),
        verdict.gates_sentence(link, gated),
        verdict.ledger_sentence(link),
        verdict.causes_sentence(effects),
    ]
    sections = [
        _weights(key, link, alignment),
        _activations(key, link, _gates_by_domain(run, tuned), gated),
        _ledger(key, link),
        _causes(key, effects),
        Section(
            f"{key}-link",
            "Link: do the modules that moved most also change most?",
            "Each point is a module (or component) of one layer. Choose what to compare. Beside it, the rank "
            "correlations; "
            "their intervals resample prompts, so they say nothing about other models. The direct terms come "
            "first: of all "
            "activation measures they are what a module's own weights did.",
            [
                Figure(
                    f"{key}-scatter",
                    "Weight measure against activation or causal measure",
                    "",
                    figures.empty_scatter(),
                    True,
                )
            ],
        ),
    ]
    return Chapter(
        key,
        tuned,
        [sentence for sentence in sentences if sentence],
        sections,
        summary.to_dict("records"),
        tables.correlation_rows(run, tuned),
        tables.shown_prompts(run, tuned),
    )


def _table(run: Run, name: str, where: list[tuple[str, str, object]]) -> pd.DataFrame:
    if name not in run.tables:
        return pd.DataFrame(columns=SCHEMAS[name].names)
    return run.df(name, where=where)


def _gates_by_domain(run: Run, tuned: str) -> pd.DataFrame:
    if "gates" not in run.tables:
        return pd.DataFrame()
    columns = ["prompt_id", "layer", "flip_rate", "chance_flip_rate"]
    gates = run.df("gates", columns=columns, where=[("tuned", "==", tuned)])
    per_prompt = gates.groupby(["prompt_id", "layer"], as_index=False).mean()
    return per_prompt.merge(run.df("prompts", columns=["prompt_id", "domain"]), on="prompt_id")


def _weights(key: str, link: pd.DataFrame, alignment: pd.DataFrame) -> Section:
    modules = link[link.kind == "module"]
    found = []
    if len(modules):
        plot = figures.heatmap(modules, "relative_norm", "module", figures.MODULES)
        found.append(Figure(f"{key}-norm", "How far each module moved", "‖T‖/‖W‖", plot))
    for side in _SIDES:
        fixed = alignment[alignment.epsilon.isna() & (alignment.side == side)]
        if len(fixed):
            fixed = fixed.assign(lift=fixed.ssa**2 / fixed.ssa_null**2)
            plot = figures.heatmap(fixed, "lift", "module", figures.MODULES, signed_around=1.0)
            note = "Energy of T in the leading 10 % of directions over what no direction would give; 1 is chance."
            found.append(Figure(f"{key}-lift-{side}", f"Beyond chance, {_SIDE_NAMES[side]}", note, plot))
    at = alignment[(alignment.epsilon.sub(0.05).abs() < 1e-9) & (alignment.side == "left")]
    if len(at):
        names = {"ssa": "SSA at ε = 0.05", "ssa_null": "Its null", "kappa": "κ: SSA beyond its null"}
        notes = {
            "ssa": "Share of T inside the pretrained output subspace. Compare with its null before reading into it.",
            "ssa_null": "What a T with no preferred direction would score: a matter of matrix shape.",
            "kappa": "0 at the null, 1 inside the subspace. ∗ marks modules with no room above the null.",
        }
        for value, title in names.items():
            signed = 0.0 if value == "kappa" else None
            marked = "at_ceiling" if value == "kappa" else None
            plot = figures.heatmap(
                at,
                value,
                "module",
                figures.MODULES,
                signed_around=signed,
                top=1.0 if value != "kappa" else None,
                marked=marked,
            )
            found.append(Figure(f"{key}-{value}", title, notes[value], plot))
    return Section(
        f"{key}-weights",
        "Weights: where did they move, and is there a pattern?",
        "T is the difference of the two checkpoints. A large move need not matter, and alignment with pretrained "
        "subspaces "
        "depends on matrix shape: what counts is the distance from the null.",
        found,
    )


def _activations(key: str, link: pd.DataFrame, gates: pd.DataFrame, gated: bool) -> Section:
    found = []
    if len(gates):
        note = "Share of neurons whose gate is open in one model and shut in the other."
        if not gated:
            note = "This model has no GLU: the sign of the MLP's pre-activation stands in for the gate."
        found.append(Figure(f"{key}-flips", "Gate flips by layer", note, figures.flips_by_layer(gates)))
    components = link[link.kind == "component"]
    if len(components) and components.flip_rate.notna().any():
        rows = components[components.component == "mlp"]
        plot = figures.heatmap(rows, "flip_rate", "component", ("mlp",))
        found.append(Figure(f"{key}-flipmap", "Gate flips", "Mean over prompts.", plot))
    for value, title, note in (
        (
            "change_relative",
            "Contribution change",
            "‖change‖/‖base contribution‖ of what is added to the residual stream.",
        ),
        ("change_cosine", "Agreement of both models' contributions", "Cosine; 1 is the same direction."),
    ):
        if len(components) and components[value].notna().any():
            top = 1.0 if value == "change_cosine" else None
            plot = figures.heatmap(components, value, "component", ("attn", "mlp"), top=top)
            found.append(Figure(f"{key}-{value}", title, note, plot))
    return Section(
        f"{key}-activations",
        "Activations: what changed while the models ran?",
        "Late components change because their inputs changed, too. The ledger below tells a module's own doing "
        "from what it "
        "inherited.",
        found,
    )


def _ledger(key: str, link: pd.DataFrame) -> Section:
    modules = link[(link.kind == "module") & link.direct_norm.notna()]
    found = []
    if len(modules):
        note = (
            "direct: its own weights moved; inherited: its input moved; interaction: both at once. Means over layers "
            "and prompts."
        )
        found.append(Figure(f"{key}-terms", "Own doing or inherited?", note, figures.ledger_shares(modules)))
        note = (
            "Of the direct term, the share outside the pretrained output subspace. A bar at its line is what chance "
            "gives."
        )
        found.append(Figure(f"{key}-new", "New directions or old ones?", note, figures.new_directions(modules)))
        plot = figures.heatmap(modules, "direct_share", "module", figures.MODULES, top=1.0)
        found.append(
            Figure(f"{key}-direct", "Share of a module's own doing", "direct² of the three squared norms.", plot)
        )
    return Section(
        f"{key}-ledger",
        "Ledger: who did it?",
        "Every change of a module's output is the exact sum of three terms, measured where the answers are predicted.",
        found,
    )


def _causes(key: str, effects: pd.DataFrame) -> Section:
    found = []
    for method, note in (
        ("graft", "Give the base this one component of the tuned model."),
        ("revert", "Take this one component away from the tuned model."),
    ):
        own = effects[effects.method == method]
        if own.empty:
            continue
        reach = float(effects.effect.abs().max()) or 1.0
        blocks = own[own.component.isin(["attn", "mlp"])]
        plot = figures.heatmap(blocks, "effect", "component", ("attn", "mlp"), signed_around=0.0, top=reach)
        found.append(Figure(f"{key}-{method}-map", f"Causal effect by {method}", note, plot))
        names = [component_name(row.layer, row.component) for row in own.itertuples()]
        note = "95 % intervals over prompts; a filled dot has q < 0.05."
        found.append(
            Figure(f"{key}-{method}", f"Components ranked by {method}", note, figures.ranked_effects(own, names))
        )
    return Section(
        f"{key}-causes",
        "Causes: which components carry the new behaviour?",
        "Both methods are exact. They differ because components work together: one that matters only when others "
        "moved too shows in revert and not in graft. Effects count towards the tuned model: positive means the metric "
        "moves up. Shown is the domain in which effects are largest; the table `effects` has every domain.",
        found,
    )
