"""How far each module moved, and each head's slice of it."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting import figures
from probes.reporting.alignment import fixed_fraction
from probes.reporting.chapter import Chapter, panel
from probes.reporting.moved import is_other, matrices, moves
from probes.reporting.panel import Figure, Panel, Table
from probes.reporting.words import number, percent
from tv.architecture.anatomy import MODULES


@panel("weights", order=10, needs=["weights"])
def moved(chapter: Chapter) -> Iterator[Panel]:
    """Relative norm, and amplification of W's singular directions, layer by module."""
    n_layers, weights = chapter.evidence.n_layers, matrices(chapter.evidence.weights)
    if weights.empty:
        return
    told = {"cosine": "cosine(W_base, W_tuned)", "noise_share": "noise share", "cos_weight_delta": "cos(W, T)"}
    named = weights.rename(columns=told)
    plot = figures.heatmap(named, "relative_norm", "module", MODULES, n_layers, hover=list(told.values()))
    maps = [Figure("norm", "Relative norm ‖T‖/‖W‖", [plot])]
    amplified = weights.assign(ratio=weights.diagonal_energy / weights.diagonal_energy_null).dropna(subset=["ratio"])
    if len(amplified):
        far = figures.reach(amplified.ratio)
        plot = figures.heatmap(amplified, "ratio", "module", MODULES, n_layers, ratio=True, reach=far)
        maps.append(Figure("diagonal", "Amplification: Σ(uᵢᵀTvᵢ)² over its null", [plot]))
    note = (
        "Relative norm is how far each matrix moved; point at a cell for the share of rounding noise. "
        "Amplification is whether T scales W's singular directions; 1 is chance, and its colours end at 4×. Grey did "
        "not move."
    )
    yield Panel("How far each module moved", note, maps)


@panel("weights", order=15, needs=["weights"])
def others(chapter: Chapter) -> Iterator[Panel]:
    """Parameters that are no matrix, gain or bias, and whole parts beside the language model: one line a name."""
    weights = chapter.evidence.weights
    rows = weights[is_other(weights)]
    if rows.empty:
        return
    named = rows.assign(moved=moves(rows)).groupby("module", sort=False)
    cells = [
        (
            str(name),
            f"{len(of)}",
            f"{of.numbers.sum():,.0f}",
            f"{of.moved.sum()}",
            number(of.relative_norm.max()),
            percent(of.noise_share.max()) if of.noise_share.notna().any() else "–",
        )
        for name, of in named
    ]
    note = (
        "Sinks, kernels, scalars and the like, and in one line each part beside the language model or outside its "
        "forward pass: with its matrices, it is one sum over all of its numbers."
    )
    columns = ("name", "rows", "numbers", "rows that moved", "largest ‖T‖/‖W‖", "most rounding")
    yield Panel("Other parameters", note, [], tables=[Table("others", "", columns, cells)])


@panel("weights", order=40, needs=["weights"])
def heads(chapter: Chapter) -> Iterator[Panel]:
    """Layer × head: how far each head's slice moved, and into which of its long side's directions."""
    one_head, n_layers = [("head", ">=", 0)], chapter.evidence.n_layers
    weights = chapter.rows("weights", "layer module head relative_norm", one_head)
    alignment = chapter.rows("alignment", "layer module head side epsilon ssa ssa_null kappa ssa_z", one_head)
    fixed = fixed_fraction(alignment)
    modules = [name for name in MODULES if name in set(weights.module)]
    if not modules:
        return
    norms, lifts = [], []
    far = figures.reach(fixed.lift) if len(fixed) else 1.2
    for name in modules:
        order = [str(head) for head in sorted(set(weights["head"][weights.module == name]))]
        slices, aligned = (
            table[table.module == name].assign(head=table["head"].astype(str)) for table in (weights, fixed)
        )
        norms.append(figures.heatmap(slices, "relative_norm", "head", order, n_layers))
        lifts.append(figures.heatmap(aligned, "lift", "head", order, n_layers, ratio=True, reach=far, hover=["kappa"]))
    note = (
        "Each head's rows of q, k and v, or columns of o. The lift is of the input side for q, k, v and of the "
        "output side for o, in the leading 10 % of directions; 1 is chance, and grey did not move."
    )
    maps = [Figure("head-norm", "Relative norm ‖T‖/‖W‖", norms), Figure("head-lift", "Lift", lifts)]
    yield Panel("Head by head", note, maps, modules, "module")
