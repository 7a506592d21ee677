"""Whether T lies in the pretrained subspaces: the lift at a fixed fraction, and SSA beside its null and κ."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting import figures
from probes.reporting.alignment import at_epsilon, fixed_fraction
from probes.reporting.chapter import Chapter, panel
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import SIDES
from tv.architecture.anatomy import MODULES


@panel("weights", order=20, needs=["alignment"])
def lift(chapter: Chapter) -> Iterator[Panel]:
    """Energy of T in the leading 10 % of W's directions over chance, layer by module, on both sides."""
    fixed = fixed_fraction(chapter.evidence.alignment)
    if fixed.empty:
        return
    far, hover = figures.reach(fixed.lift), ["SSA", "null", "kappa", "z"]
    maps = []
    for side in ("left", "right"):
        rows = fixed[fixed.side == side].rename(columns={"ssa": "SSA", "ssa_null": "null", "ssa_z": "z"})
        plot = figures.heatmap(
            rows, "lift", "module", MODULES, chapter.evidence.n_layers, ratio=True, reach=far, hover=hover
        )
        maps.append(Figure(f"lift-{side}", f"Lift, {SIDES[side]}", [plot]))
    note = (
        "Energy of T in the leading 10 % of W's singular directions over what a T with no preferred direction "
        "would put there. Every module keeps the same share of directions, so modules can be compared. 1 is "
        "chance, orange is more; colours end at 4×. Grey did not move."
    )
    yield Panel("Alignment beyond chance (fixed 10 % of directions)", note, maps)


@panel("weights", order=30, needs=["alignment"])
def ssa(chapter: Chapter) -> Iterator[Panel]:
    """SSA, its null and κ side by side, at every side and ε."""
    alignment = chapter.evidence.alignment
    epsilons = sorted({float(e) for e in alignment.epsilon.dropna()}, key=lambda e: (abs(e - 0.05), e))
    cuts = [(side, epsilon) for side in ("left", "right", "two_sided") for epsilon in epsilons]
    cuts = [(side, epsilon) for side, epsilon in cuts if len(at_epsilon(alignment, side, epsilon))]
    if not cuts:
        return
    columns = {"ssa": "SSA", "ssa_null": "Its null", "kappa": "κ = (SSA² − null²)/(1 − null²)"}
    plots: dict[str, list[figures.Plot]] = {value: [] for value in columns}
    for side, epsilon in cuts:
        rows = at_epsilon(alignment, side, epsilon).rename(columns={"ssa_z": "z"})
        for value in columns:
            plots[value].append(
                figures.heatmap(
                    rows,
                    value,
                    "module",
                    MODULES,
                    chapter.evidence.n_layers,
                    centre=0.0 if value == "kappa" else None,
                    reach=max(0.1, min(1.0, float(rows.kappa.abs().max()))) if value == "kappa" else 1.0,
                    hover=["ssa", "ssa_null", "kappa", "z", "k", "dim"],
                    marked="at_ceiling",
                )
            )
    note = (
        "Read the three together: SSA alone mostly shows matrix shape. κ is 0 at the null and 1 when T lies wholly "
        "inside the subspace. ∗ marks modules at the ceiling (null² > 0.95), where there is room below the null and "
        "none above it. Grey did not move."
    )
    maps = [Figure(value, title, plots[value]) for value, title in columns.items()]
    choices = [f"{SIDES[side]}, ε = {epsilon:g}" for side, epsilon in cuts]
    yield Panel("SSA beside its null and κ", note, maps, choices, "side and ε")
