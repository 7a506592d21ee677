"""What vectors of T's norms do in T's place, in a sentence."""

from __future__ import annotations

import pandas as pd

from probes.reporting.causes import shown_domain
from probes.reporting.evidence import Evidence
from probes.reporting.words import effect_metric_name, number, prompts_of, signed


def control_sentence(evidence: Evidence) -> str:
    """The effect of the whole T beside those of control vectors, where its effects are told; without a full stop.

    p is the share of vectors, T among them, whose effect is at least as large as T's: of 20 draws, at best 1/21.
    """
    domain = shown_domain(evidence.effects, evidence.behaviour)
    whole = evidence.whole[(evidence.whole.domain == domain) & (evidence.whole.method == "graft")]
    real = whole[whole.control == ""]
    draws = evidence.control_draws[evidence.control_draws.domain == domain]
    if draws.empty:  # of an earlier version: one draw of each
        draws = whole[whole.control != ""]
    if real.empty or draws.empty:
        return "no control vector was tried"
    effect = float(real.effect.iloc[0])
    metric = effect_metric_name(str(evidence.effects.metric.iloc[0]))
    moved = f"all of T moves the {metric} on {prompts_of(domain)} by {signed(effect)}"
    if real.within_noise.eq(True).all():
        moved += ", which rounding alone can do"
    beside = [_beside(str(kind), rows.effect, effect) for kind, rows in draws.groupby("control", sort=False)]
    return f"{moved}, {'; '.join(beside)}"


def _beside(kind: str, draws: pd.Series, effect: float) -> str:
    if len(draws) == 1:
        return f"a {kind} vector of its norms by {signed(float(draws.iloc[0]))}"
    sizes = draws.abs()
    p = f"{1 + int((sizes >= abs(effect)).sum())}/{1 + len(sizes)}"
    return (
        f"{len(sizes)} {kind} vectors of its norms by {number(float(sizes.median()))} at the median and "
        f"{number(float(sizes.max()))} at most (p = {p})"
    )
