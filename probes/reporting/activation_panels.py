"""The activations section: gate flips, contribution changes and the ledger."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from probes.reporting import charts, figures
from probes.reporting.evidence import MODULES, Evidence
from probes.reporting.panels import NO_GLU, Figure, Panel


def activation_panels(key: str, evidence: Evidence) -> list[Panel]:
    """Gate flips and contribution changes, layer by component."""
    panels, n_layers = [], evidence.n_layers
    flips = evidence.flips
    if len(flips):
        names = [str(domain) for domain in dict.fromkeys(flips.domain)]
        lines = [charts.flips_by_layer(flips, "flip_rate", "chance_flip_rate", evidence.noise_floor)]
        maps = [_flip_map(flips, "flip_rate", "chance_flip_rate", names, n_layers)]
        choices = ["share of neurons that flipped (Hamming)"]
        if flips.edit_distance.notna().any():
            known = flips[flips.edit_distance.notna()]
            lines.append(charts.flips_by_layer(known, "edit_distance", "chance_edit_distance"))
            maps.append(_flip_map(known, "edit_distance", "chance_edit_distance", names, n_layers))
            choices.append("edit distance (Levenshtein), where measured")
        note = (
            "Neurons of the MLP whose gate is open in one model and shut in the other, mean over prompts of a "
            "domain. Dotted: two unrelated patterns of the same activity. Dashed: the base against itself in another "
            "precision; what lies there is rounding."
        )
        found = [
            Figure(f"{key}-flips", "By layer, a line a domain", lines),
            Figure(f"{key}-flipmap", "Layer × component, domain by domain", maps),
        ]
        note = note if evidence.gated else f"{NO_GLU} {note}"
        panels.append(Panel("Gate flips", note, found, choices if len(choices) > 1 else [], "distance"))
    changes = evidence.changes
    if len(changes):
        relative = figures.heatmap(changes, "relative_change", "component", ("attn", "mlp"), n_layers)
        away = changes.assign(away=1 - changes.cosine)
        turned = figures.heatmap(away, "away", "component", ("attn", "mlp"), n_layers, hover=["cosine"])
        note = (
            "What each component adds to the residual stream, tuned against base, mean over positions and prompts. A "
            "component can change without its own weights moving: its input changed. The ledger below tells the two "
            "apart."
        )
        found = [
            Figure(f"{key}-relative", "Relative change ‖Δ‖/‖base‖", [relative]),
            Figure(f"{key}-turned", "Change of direction, 1 − cosine", [turned]),
        ]
        panels.append(Panel("Contribution change", note, found))
    return panels + _ledger_panels(key, evidence)


def _flip_map(flips: pd.DataFrame, value: str, chance: str, names: Sequence[str], n_layers: int) -> figures.Plot:
    rows = flips.assign(domain="mlp, " + flips.domain.astype(str)).rename(columns={chance: "chance"})
    return figures.heatmap(rows, value, "domain", [f"mlp, {name}" for name in names], n_layers, hover=["chance"])


def _ledger_panels(key: str, evidence: Evidence) -> list[Panel]:
    ledger = evidence.ledger[evidence.ledger.module.isin(MODULES)]
    if ledger.empty:
        return []
    note = (
        "Every change of a module's output is exactly the sum of three terms: direct (its own weights moved, T x), "
        "inherited (its input moved, W Δx) and interaction (T Δx). Bars are shares of the three squared norms; the "
        "terms are not orthogonal, so these do not add up to the squared change."
    )
    bars = Figure(f"{key}-terms", "Direct, inherited, interaction", [charts.ledger_bars(ledger, evidence.n_layers)])
    panels = [Panel("Ledger: own doing or inherited?", note, [bars], wide=True)]
    split = ledger[ledger.new_share_10.notna()]
    if len(split):
        split = split.assign(
            over_10=100 * (split.new_share_10 - 0.9), over=100 * (split.new_share - split.new_share_null)
        )
        far = max(10.0, float(split[["over_10", "over"]].abs().max().max()))
        maps = [
            figures.heatmap(split, value, "module", MODULES, evidence.n_layers, centre=0, reach=far, hover=list(told))
            for value, told in (("over_10", ("new_share_10",)), ("over", ("new_share", "new_share_null")))
        ]
        note = (
            "Of the direct term, the share outside the pretrained output subspace, on the inputs that really "
            "occurred, against what a T with no preferred direction gives. Orange writes newer directions than "
            "chance, blue older ones."
        )
        found = [
            Figure(f"{key}-new", "Mean over layers, beside the nulls", [charts.new_directions(split)]),
            Figure(f"{key}-new10", "Leading 10 %: share − 0.9, in points", [maps[0]]),
            Figure(f"{key}-newk", "ε = 0.05: share − (1 − k/m), in points", [maps[1]]),
        ]
        panels.append(Panel("Does the direct term write new directions?", note, found))
    return panels
