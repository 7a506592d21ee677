"""Non-causal measures of every component as rankings: do they predict causal effects?"""

from __future__ import annotations

from probes.attribution.units import Unit
from probes.linking import link_tables, read_tables
from probes.store.run import Run

#: Each ranking, and its column of `link`.
SCORES = {"ssa": "ssa_left", "kappa": "kappa_left", "ledger": "direct_norm", "gate_flips": "flip_rate"}


def component_scores(run: Run, tuned: str) -> dict[str, dict[Unit, float]]:
    """Each of SCORES for every component that has one; none that the run did not measure."""
    tables = read_tables(run, tuned) | {"effects": None, "prompt_effects": None}
    if tables["weights"] is None:
        return {}
    linked, _ = link_tables(**tables, draws=1, seed=0)
    scores = {}
    for name, column in SCORES.items():
        rows = linked[(linked.kind == "component") & linked[column].notna()]
        if len(rows):
            scores[name] = {
                Unit("component", int(layer), str(component)): float(value)
                for layer, component, value in zip(rows.layer, rows.component, rows[column], strict=True)
            }
    return scores
