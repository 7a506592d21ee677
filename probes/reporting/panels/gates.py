"""Gates of the MLP that are open in one model and shut in the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from probes.reporting import charts, figures
from probes.reporting.behind import behind
from probes.reporting.chapter import Chapter, panel
from probes.reporting.panel import NO_GLU, Figure, Panel


@panel("activations", order=10, needs=["gates"])
def flips(chapter: Chapter) -> Iterator[Panel]:
    """Flips by layer, one line per domain beside chance and rounding, and as a map."""
    evidence, rows = chapter.evidence, chapter.evidence.flips
    if rows.empty:
        return
    own = behind(chapter, "gates", "flip_rate edit_distance", {n: n for n in ("flip_rate", "edit_distance")}, "")
    domains = [str(domain) for domain in dict.fromkeys(rows.domain)]
    lines = [charts.flips_by_layer(rows, "flip_rate", "chance_flip_rate", evidence.noise_floor)]
    maps = [_flip_map(rows, "flip_rate", "chance_flip_rate", domains, evidence.n_layers, own)]
    choices = ["share of neurons that flipped (Hamming)"]
    if rows.edit_distance.notna().any():
        known = rows[rows.edit_distance.notna()]
        lines.append(charts.flips_by_layer(known, "edit_distance", "chance_edit_distance"))
        maps.append(_flip_map(known, "edit_distance", "chance_edit_distance", domains, evidence.n_layers, own))
        choices.append("edit distance (Levenshtein), where measured")
    note = (
        "Neurons of the MLP whose gate is open in one model and shut in the other, mean over prompts of a "
        "domain. Dotted: two unrelated patterns of the same activity. Dashed: the base against itself in another "
        "precision; what lies there is rounding."
    )
    plots = [
        Figure("flips", "By layer, one line per domain", lines),
        Figure("flipmap", "Layer × component, domain by domain", maps),
    ]
    note = note if evidence.gated else f"{NO_GLU} {note}"
    yield Panel("Gate flips", note, plots, choices if len(choices) > 1 else [], "distance")


def _flip_map(
    flips: pd.DataFrame, value: str, chance: str, domains: Sequence[str], n_layers: int, own: pd.DataFrame
) -> figures.Plot:
    rows = flips.assign(domain="mlp, " + flips.domain.astype(str)).rename(columns={chance: "chance"})
    prompts = own.assign(domain="mlp, " + own.domain.astype(str), value=own[value])
    order = [f"mlp, {name}" for name in domains]
    return figures.heatmap(
        rows, value, "domain", order, n_layers, hover=["chance"], axis="component, prompts", behind=prompts
    )
