"""Gate flips of several entries."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting.compare import charts
from probes.reporting.compare.arranging import SHARE, by_domain
from probes.reporting.compare.comparison import Comparison, compare_panel
from probes.reporting.panel import Figure, Panel
from probes.reporting.words import percent


@compare_panel("activations", order=10, needs=["gates"])
def flips(compared: Comparison) -> Iterator[Panel]:
    """Flips by depth, one line per entry, beside chance."""
    rows = compared.laid(lambda entry: entry.evidence.flips)
    if rows.empty:
        return
    cuts = by_domain(rows)
    lines = [
        charts.by_depth(
            in_domain, "flip_rate", compared.layers, title="share of neurons", level="chance_flip_rate", axis=SHARE
        )
        for in_domain in cuts.values()
    ]
    floors = compared.laid(lambda entry: entry.evidence.noise_floor)
    rounding = f" Rounding alone flips {percent(floors.flip_rate.mean())}." if len(floors) else ""
    note = (
        "Neurons whose gate is open in one model and shut in the other; dotted: unrelated patterns of the same "
        f"activity, one line for entries of one depth.{rounding}{compared.lacking(rows)}"
    )
    yield Panel("Gate flips", note, [Figure("flips", "", lines)], list(cuts), "prompts", wide=True)
