"""The ledgers of several entries: new directions, or more of the old."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting.compare import charts
from probes.reporting.compare.arranging import block_modules, by_module
from probes.reporting.compare.comparison import Comparison, compare_panel
from probes.reporting.panel import Figure, Panel


@compare_panel("activations", order=30, needs=["ledger"])
def ledger(compared: Comparison) -> Iterator[Panel]:
    """New, amplified and direct shares by module and by depth."""
    terms = block_modules(compared.laid(lambda entry: entry.evidence.ledger))
    if terms.empty:
        return
    rows = terms.assign(ten=0.9)
    cuts = {
        "new: outside the leading 10 % of output directions": ("new_share_10", "ten"),
        "amplified: inside the leading 10 %": ("amplified_10", "ten_inside"),
        "new: outside the ε = 0.05 subspace": ("new_share", "new_share_null"),
        "due to own weights: the direct term's share of the change": ("direct", ""),
    }
    rows = rows.assign(amplified_10=1 - rows.new_share_10.astype(float), ten_inside=0.1)
    cuts = {name: cut for name, cut in cuts.items() if rows[cut[0]].notna().any()}
    if not cuts:  # nothing moved
        return
    names, depths = [], []
    for value, level in cuts.values():
        known = rows.dropna(subset=[value])
        names.append(by_module(compared, known, value, "share of squared norm", level, {"tickformat": ".0%"}))
        depths.append(
            charts.by_depth(known, value, compared.layers, title="share", level=level, axis={"tickformat": ".0%"})
        )
    note = (
        "Of what each module's own weights add to its output (T x), the share in directions that the pretrained module "
        "hardly wrote, beside its null; and how much of the whole change that is. New means more than the null, not "
        "more than half." + compared.lacking(terms)
    )
    plots = [
        Figure("ledger-by-module", "By module, mean over layers", names),
        Figure("ledger-by-depth", "By depth, mean over modules", depths),
    ]
    yield Panel("Ledger: new directions, or more of the old?", note, plots, list(cuts), "share")
