"""Which weight measures go together with what happened, in sentences."""

from __future__ import annotations

import pandas as pd

from probes.reporting.words import MEASURES, interval, listing, number

#: A pair stands out of shuffled units where its p over the whole family is below this.
STANDS_OUT = 0.05
#: What the sentences are about: of modules, what their own weights wrote; of components, what exact methods say.
_ASKED = {"module": ["direct_share"], "component": ["graft", "revert"]}
#: Raw SSA reflects matrix shape.
_NOT_TOLD = ("ssa_left", "ssa_right")


def link_sentences(correlations: pd.DataFrame) -> list[str]:
    """The strongest rank correlation that stands out of shuffled units, per kind of unit, or that none does.

    Args:
        correlations: Rows of `correlations` over all units of one tuned model.

    Returns:
        A sentence for modules and one for components; none where nothing was measured, or no unit moved.
    """
    known = correlations[~correlations.weight_measure.isin(_NOT_TOLD)].dropna(subset=["rho"])
    sentences = []
    for kind, measures in _ASKED.items():
        rows = known[(known.kind == kind) & known.activation_measure.isin(measures)]
        if len(rows):
            measured = listing([MEASURES[name] for name in dict.fromkeys(rows.activation_measure)])
            sentences.append(
                f"Over {rows.n.max()} {kind}s that moved, ranked within their type, {measured}: {_found(rows)}"
            )
    return sentences


def stands_out(correlations: pd.DataFrame) -> pd.Series:
    """Whether each pair may be named: its p over the family is small enough; never where it is not known."""
    return correlations.p_family.astype(float) < STANDS_OUT


def _found(rows: pd.DataFrame) -> str:
    clear, tests = rows[stands_out(rows)], rows.p_family.astype(float)
    if tests.isna().all():
        return f"{len(rows)} pairs with a weight measure, not tested in this run; `probes link` tests them."
    if clear.empty:
        return (
            f"none of {len(rows)} pairs with a weight measure is clear of chance "
            f"(shuffled units; smallest p {number(tests.min(), 2)} over all pairs)."
        )
    top = clear.loc[clear.rho.abs().astype(float).idxmax()]
    ends = " ".join(part for part in (number(top.rho, 2), interval(top.lo, top.hi)) if part)
    return (
        f"{len(clear)} of {len(rows)} pairs with a weight measure are clear of chance (shuffled units), most of all "
        f"{MEASURES[top.weight_measure]} with {MEASURES[top.activation_measure]}, ρ = {ends}, "
        f"p = {number(top.p_family, 2)} over all pairs."
    )
