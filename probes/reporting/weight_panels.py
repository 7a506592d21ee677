"""The weights section: how far each module moved, and whether into the pretrained subspaces."""

from __future__ import annotations

from probes.reporting import figures, weight_charts
from probes.reporting.alignment import at_epsilon, fixed_fraction
from probes.reporting.evidence import MODULES, Evidence, rows_of
from probes.reporting.panels import Figure, Panel
from probes.reporting.words import SIDES, layer_name
from probes.store.run import Run

#: Matrices whose spectra a report holds; of a model with more, every n-th layer's.
MATRICES = 240


def weights_panels(key: str, evidence: Evidence) -> list[Panel]:
    """How far each module moved; alignment at the fixed fraction; SSA beside its null and κ."""
    panels, n_layers = [], evidence.n_layers
    weights = evidence.weights[~evidence.weights.module.astype(str).str.endswith("norm")]
    if len(weights):
        told = {"cosine": "cosine(W_base, W_tuned)", "noise_share": "noise share", "cos_weight_delta": "cos(W, T)"}
        rows = weights.rename(columns=told)
        plot = figures.heatmap(rows, "relative_norm", "module", MODULES, n_layers, hover=list(told.values()))
        ratio = weights.assign(ratio=weights.diagonal_energy / weights.diagonal_energy_null).dropna(subset=["ratio"])
        maps = [Figure(f"{key}-norm", "Relative norm ‖T‖/‖W‖", [plot])]
        if len(ratio):
            far = figures.reach(ratio.ratio)
            plot = figures.heatmap(ratio, "ratio", "module", MODULES, n_layers, ratio=True, reach=far)
            maps.append(Figure(f"{key}-diagonal", "Amplification: Σ(uᵢᵀTvᵢ)² over its null", [plot]))
        note = (
            "Relative norm is how far each matrix moved; point at a cell for the share of rounding noise. "
            "Amplification is whether T scales W's own singular directions; 1 is chance, and its colours end at 4×."
        )
        panels.append(Panel("How far each module moved", note, maps))
    fixed = fixed_fraction(evidence.alignment)
    if len(fixed):
        maps = []
        far = figures.reach(fixed.lift)
        for side in ("left", "right"):
            rows = fixed[fixed.side == side].rename(columns={"ssa": "SSA", "ssa_null": "null", "ssa_z": "z"})
            plot = figures.heatmap(
                rows, "lift", "module", MODULES, n_layers, ratio=True, reach=far, hover=["SSA", "null", "kappa", "z"]
            )
            maps.append(Figure(f"{key}-lift-{side}", f"Lift, {SIDES[side]}", [plot]))
        note = (
            "Energy of T in the leading 10 % of W's singular directions over what a T with no preferred direction "
            "would put there. Every module keeps the same share of directions, so modules can be compared. 1 is "
            "chance, orange is more; colours end at 4×."
        )
        panels.append(Panel("Alignment beyond chance (fixed 10 % of directions)", note, maps))
    if panel := _ssa_panel(key, evidence):
        panels.append(panel)
    return panels


def head_panels(key: str, evidence: Evidence, run: Run) -> list[Panel]:
    """Layer × head: how far each head's slice moved, and into which of its long side's directions."""
    own = [("tuned", "==", evidence.tuned), ("head", ">=", 0)]
    weights = rows_of(run, "weights", "layer module head relative_norm", own)
    fixed = fixed_fraction(rows_of(run, "alignment", "layer module head side epsilon ssa ssa_null kappa ssa_z", own))
    modules = [name for name in MODULES if name in set(weights.module)]
    if not modules:
        return []
    moved, lifts = [], []
    far = figures.reach(fixed.lift) if len(fixed) else 1.2
    for name in modules:
        heads = [str(head) for head in sorted(set(weights["head"][weights.module == name]))]
        rows = [table[table.module == name].assign(head=table["head"].astype(str)) for table in (weights, fixed)]
        moved.append(figures.heatmap(rows[0], "relative_norm", "head", heads, evidence.n_layers))
        lifts.append(
            figures.heatmap(rows[1], "lift", "head", heads, evidence.n_layers, ratio=True, reach=far, hover=["kappa"])
        )
    note = (
        "Each head's own rows of q, k and v, or columns of o. The lift is of the input side for q, k, v and of the "
        "output side for o, in the leading 10 % of directions; 1 is chance."
    )
    found = [Figure(f"{key}-head-norm", "Relative norm ‖T‖/‖W‖", moved), Figure(f"{key}-head-lift", "Lift", lifts)]
    return [Panel("Head by head", note, found, modules, "module")]


def spectra_panels(key: str, evidence: Evidence, run: Run) -> list[Panel]:
    """Both spectra of a chosen matrix, and how T's energy gathers along W's directions."""
    own = [("tuned", "==", evidence.tuned), ("expert", "==", -1)]
    spectra = rows_of(run, "spectra", "", own)
    step = -(-spectra.groupby(["layer", "module"]).ngroups // MATRICES) if len(spectra) else 1
    choices, values, energy = [], [], []
    for (layer, name), rows in spectra.groupby(["layer", "module"], sort=False):
        if int(layer) % step == 0:
            choices.append(f"{name} of layer {layer}")
            values.append(weight_charts.singular_values(rows))
            energy.append(weight_charts.gathered(rows))
    if not choices:
        return []
    note = (
        "Left: how the singular values of W and of T fall off; T of a low-rank adapter ends early. Right: how much of "
        "T lies in the leading directions of W. Dotted is where a T with no preferred direction would be, so a matrix "
        "much taller than wide starts high by its shape alone."
    )
    found = [
        Figure(f"{key}-spectra", "Singular values", values),
        Figure(f"{key}-gathered", "T along W’s directions", energy),
    ]
    return [Panel("Spectra of one matrix", note, found, choices, "matrix")]


def cosine_panels(key: str, evidence: Evidence, run: Run) -> list[Panel]:
    """Every tuning vector of the run against every other, over the whole model and by layer."""
    rows = rows_of(run, "cosines", "", [])
    if rows.empty:
        return []
    names = list(dict.fromkeys([*rows.tuned, *rows.reference]))
    scopes = [("all parameters", rows[rows.scope == "whole"])]
    for layer, own in rows[rows.scope == "layer"].groupby("layer"):
        where = layer_name(int(layer), evidence.n_layers)
        scopes.append((f"layer {where}" if where.isdigit() else f"{where}ding", own))
    note = (
        "Cosine between tuning vectors. In so many dimensions two unrelated vectors have a cosine of next to 0, so "
        "point at a cell for how far beyond chance it is. Orange: they pull the same way; blue: against each other."
    )
    plots = [weight_charts.cosine_matrix(own, names) for _, own in scopes]
    figure = Figure(f"{key}-cosines", "Cosine of T", plots)
    return [Panel("Against the other tuning vectors", note, [figure], [name for name, _ in scopes], "over")]


def _ssa_panel(key: str, evidence: Evidence) -> Panel | None:
    alignment = evidence.alignment
    epsilons = sorted({float(e) for e in alignment.epsilon.dropna()}, key=lambda e: (abs(e - 0.05), e))
    cuts = [(side, epsilon) for side in ("left", "right", "two_sided") for epsilon in epsilons]
    cuts = [(side, epsilon) for side, epsilon in cuts if len(at_epsilon(alignment, side, epsilon))]
    if not cuts:
        return None
    columns = {"ssa": "SSA", "ssa_null": "Its null", "kappa": "κ = (SSA² − null²)/(1 − null²)"}
    plots: dict[str, list[figures.Plot]] = {value: [] for value in columns}
    for side, epsilon in cuts:
        rows = at_epsilon(alignment, side, epsilon).rename(columns={"ssa_z": "z"})
        for value in columns:
            reach = max(0.1, min(1.0, float(rows.kappa.abs().max()))) if value == "kappa" else 1.0
            plots[value].append(
                figures.heatmap(
                    rows,
                    value,
                    "module",
                    MODULES,
                    evidence.n_layers,
                    centre=0.0 if value == "kappa" else None,
                    reach=reach,
                    hover=["ssa", "ssa_null", "kappa", "z", "k", "dim"],
                    marked="at_ceiling",
                )
            )
    note = (
        "Read the three together: SSA alone mostly draws matrix shapes. κ is 0 at the null and 1 when T lies wholly "
        "inside the subspace. ∗ marks modules at the ceiling (null² > 0.95), where there is no room to be aligned "
        "beyond chance."
    )
    maps = [Figure(f"{key}-{value}", title, plots[value]) for value, title in columns.items()]
    choices = [f"{SIDES[side]}, ε = {epsilon:g}" for side, epsilon in cuts]
    return Panel("SSA beside its null and κ", note, maps, choices, "side and ε")
