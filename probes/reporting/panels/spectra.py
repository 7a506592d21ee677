"""Both spectra of a chosen matrix, and how T's energy gathers along W's directions."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting import weight_charts
from probes.reporting.chapter import Chapter, panel
from probes.reporting.panel import Figure, Panel

#: The most matrices whose spectra a report holds; of a model with more, it takes every n-th layer.
MATRICES = 240


@panel("weights", order=50, needs=["spectra"])
def spectra(chapter: Chapter) -> Iterator[Panel]:
    """The singular values of W and T, and the share of T in W's leading directions, matrix by matrix."""
    matrices = chapter.rows("spectra", where=[("expert", "==", -1)]).groupby(["layer", "module"], sort=False)
    step = max(1, -(-matrices.ngroups // MATRICES))
    choices, values, energy = [], [], []
    for (layer, name), rows in matrices:
        if int(layer) % step == 0 and rows.share_left.notna().any():
            choices.append(f"{name} of layer {layer}")
            values.append(weight_charts.singular_values(rows))
            energy.append(weight_charts.gathered(rows))
    if not choices:
        return
    note = (
        "Of matrices that moved. Left: how the singular values of W and of T fall off; T of a low-rank adapter ends "
        "early. Right: how much of T lies in the leading directions of W. Dotted is where a T with no preferred "
        "direction would be, so a matrix much taller than wide starts high by its shape alone."
    )
    plots = [Figure("spectra", "Singular values", values), Figure("gathered", "T along W’s directions", energy)]
    yield Panel("Spectra of one matrix", note, plots, choices, "matrix")
