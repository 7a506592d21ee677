"""Do the direct logit attributions that a run measured add up to the change of the logit difference?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from probes.attribution.checks import Check
from probes.attribution.effects import changed, floor_of
from probes.attribution.floors import floors_of
from probes.capture.pair import Pair
from probes.store.run import Run
from probes.store.schemas import ALL_DOMAINS
from tv.prompts.encoding import Encoded

#: The rounding error of a sum over components in single precision.
BOUND = 1e-3


def dla_completeness(pair: Pair, run: Run, tuned: str, encoded: Sequence[Encoded]) -> list[Check]:
    """Σ_prompts |Σ_components ΔDLA − change| / Σ_prompts |change|, at the place of each prompt's answer.

    No check where nothing changed by more than rounding, nor where the sum does not apply: components or behaviour not
    measured, or measured over other tokens; a soft cap, which makes logits nonlinear; a final norm with a bias, which
    belongs to no component.
    """
    suite = run.manifest["suite"]
    measured = {"attn_out", "mlp_out"} <= set(suite["sites"]) and {"changes", "behaviour"} <= set(run.tables)
    capped = any(flow.cap is not None for flow in pair.flows)
    biased = getattr(pair.base.get_submodule(pair.architecture.final_norm), "bias", None) is not None
    if not measured or suite["generate"] is not None or capped or biased:
        return []
    whole = [("tuned", "==", tuned), ("head", "==", -1), ("expert", "==", -1)]
    changes = run.df("changes", columns=["prompt_id", "pos", "dla_base", "dla_tuned"], where=whole)
    values = run.df("behaviour", where=[("metric", "==", "logit_diff"), ("model", "in", ["base", tuned])])
    wide = values.pivot(index="prompt_id", columns="model", values="value").reindex(columns=["base", tuned])
    change = (wide[tuned] - wide["base"]).rename("change")
    places = pd.DataFrame({"prompt_id": [i.prompt.id for i in encoded], "pos": [i.answer_pos for i in encoded]})
    rows = changes.merge(places, on=["prompt_id", "pos"]).dropna(subset=["dla_base", "dla_tuned"])
    dla = (rows.dla_tuned.astype(float) - rows.dla_base).groupby(rows.prompt_id).sum().rename("dla")
    both = pd.concat([change, dla], axis=1, join="inner").dropna()
    if not changed(both.change.to_numpy(), floor_of(floors_of(run, "logit_diff"), ALL_DOMAINS)):
        return []
    gap = float((both.dla - both.change).abs().sum() / both.change.abs().sum())
    return [Check("completeness", "dla", ALL_DOMAINS, gap, BOUND)]
