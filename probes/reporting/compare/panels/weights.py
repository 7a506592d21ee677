"""The weights of several entries: how far each module moved, and along what."""

from __future__ import annotations

from probes.reporting.alignment import fixed_fraction
from probes.reporting.compare import charts
from probes.reporting.compare.arranging import FROM_ZERO, SCALE, as_figures, block_modules, by_module, side_by_side
from probes.reporting.compare.comparison import Comparison, compare_panel
from probes.reporting.panel import Figure, Panel
from tv.architecture.anatomy import MODULES


@compare_panel("weights", order=10)
def weights(compared: Comparison) -> list[Panel]:
    """How far each module moved, and alignment beyond chance at the fixed fraction."""
    moved = block_modules(compared.laid(lambda entry: entry.evidence.weights))
    fixed = block_modules(compared.laid(lambda entry: fixed_fraction(entry.evidence.alignment))).assign(chance=1.0)
    cuts = {
        "relative norm ‖T‖/‖W‖": (moved, "relative_norm"),
        "lift at 10 %, output side": (fixed[fixed.side == "left"], "lift"),
        "lift at 10 %, input side": (fixed[fixed.side == "right"], "lift"),
    }
    cuts = {name: cut for name, cut in cuts.items() if len(cut[0])}
    if not cuts:
        return []
    names, depths, maps = [], [], []
    for title, (rows, value) in cuts.items():
        level = "chance" if value == "lift" else ""
        names.append(by_module(compared, rows, value, title, level, FROM_ZERO))
        depths.append(charts.by_depth(rows, value, compared.layers, title=title, level=level, axis=FROM_ZERO))
        maps.append(side_by_side(compared, rows, value, "module", MODULES, ratio=value == "lift"))
    note = (
        "Lift is the energy of T in the leading 10 % of W's directions over what a T with no preferred direction would "
        "put there: 1 is chance, whatever the shape of the matrix." + compared.lacking(moved if len(moved) else fixed)
    )
    plots = [
        Figure("weights-by-module", "By module, mean over layers", names),
        Figure("weights-by-depth", "By depth, mean over modules", depths),
    ]
    return [
        Panel("How far each module moved, and along what", note, plots, list(cuts), "measure"),
        Panel("Layer × module", SCALE, as_figures("weights-map", compared, maps), list(cuts), "measure"),
    ]
