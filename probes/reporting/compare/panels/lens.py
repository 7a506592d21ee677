"""The logit lens of several entries."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.reporting.compare import charts
from probes.reporting.compare.arranging import FROM_ZERO, by_domain
from probes.reporting.compare.comparison import Comparison, compare_panel
from probes.reporting.compare.entries import Entry
from probes.reporting.evidence import rows_of
from probes.reporting.panel import Figure, Panel


@compare_panel("activations", order=40, needs=["lens"])
def lens(compared: Comparison) -> Iterator[Panel]:
    """The target's probability and the distance of the two models by depth."""
    rows = compared.laid(_lens_of)
    if rows.empty:
        return
    cuts = by_domain(rows)
    titles = {
        "prob_tuned": ("Probability of the target in the tuned model", "probability"),
        "kl": ("Distance of the two models", "KL(base ‖ tuned), nats"),
    }
    plots = [
        Figure(
            f"lens-{value}",
            title,
            [
                charts.by_depth(
                    in_domain,
                    value,
                    compared.layers,
                    title=unit,
                    level="prob_base" if value == "prob_tuned" else "",
                    beside="base",
                    axis=FROM_ZERO,
                )
                for in_domain in cuts.values()
            ],
        )
        for value, (title, unit) in titles.items()
    ]
    note = (
        "Each layer's residual stream read through its own model's final norm and unembedding, at the place before the "
        "target." + compared.lacking(rows)
    )
    yield Panel("Logit lens", note, plots, list(cuts), "prompts")


def _lens_of(entry: Entry) -> pd.DataFrame:
    this_model = [("tuned", "==", entry.evidence.tuned)]
    lens = rows_of(entry.run, "lens", "prompt_id layer prob_base prob_tuned kl", this_model).dropna(
        subset=["prob_tuned"]
    )
    domains = lens.prompt_id.map(entry.prompts.domain).rename("domain")
    values = ["prob_base", "prob_tuned", "kl"]
    return lens.groupby([domains, "layer"], sort=False)[values].mean().reset_index() if len(lens) else lens
