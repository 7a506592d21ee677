"""Which of the known failure signatures a run shows, in sentences with their numbers.

The signatures are those that the source (arXiv 2510.09359) reports when tuning vectors fail. Each is judged against
what a sound run would show (a null, a noise floor, an interval), never against 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from probes.reporting.evidence import Evidence, gather
from probes.reporting.words import interval, listing, metric_name, number, percent, signed
from probes.store.run import Run
from tv.architecture.anatomy import MODULES
from tv.errors import InputError
from tv.measures.cosine import cosine
from tv.stats.families import holm

#: Below this median cosine of W_base and W_tuned the models are unrelated: no fine-tune moves that far.
UNRELATED = 0.5
#: Above this share of ‖T‖², rounding explains most of T.
MOSTLY_NOISE = 0.5
#: From this exact match on, the base had hardly anything to learn.
ALIGNED = 0.9
#: Above this κ in the leading tenth of the directions, T lies mostly where W does.
WITHIN = 0.5
#: Two vectors whose cosine is above minus this lose too little of each other for a conflict.
OPPOSED = 0.05


@dataclass(frozen=True)
class Finding:
    """One signature on one tuned model; `holds` is None where the run did not measure what it needs."""

    tuned: str
    signature: str
    holds: bool | None
    sentence: str


def diagnose(run: Run, *, conflicts: bool = True) -> pd.DataFrame:
    """Which of the known failure signatures a run shows, in sentences with their numbers.

    The signatures are little_change, not_derived, rounding, nothing_new, gates_at_the_floor, and, of every two tuned
    models, conflict.

    Args:
        run: A finished run.
        conflicts: Judge conflict too, which compares the checkpoints again.

    Returns:
        A row per tuned model (or pair of them) and signature: `tuned signature holds sentence`. `holds` is None where
        the run did not measure what it needs.

    Source: arXiv 2510.09359, which reports them where tuning vectors fail.

    Examples:
        >>> signs = probes.diagnose(probes.load("reports/demo"), conflicts=False)
        >>> signs[signs.signature == "not_derived"][["tuned", "holds"]].values.tolist()
        [['medical', False], ['math', False]]
    """
    findings: list[Finding] = []
    for name in run.manifest["suite"]["tuned"]:
        evidence = gather(run, name)
        for signature, judge in _JUDGES.items():
            holds, sentence = judge(evidence, run)
            findings.append(Finding(name, signature, holds, sentence))
    if conflicts and len(run.manifest["suite"]["tuned"]) > 1:
        findings += _conflicts(run.manifest["suite"])
    return pd.DataFrame([vars(finding) for finding in findings]).astype({"holds": object})


Verdict = tuple[bool | None, str]


def _little_change(evidence: Evidence, run: Run) -> Verdict:
    """Negating a vector can take away no more than the vector brought."""
    rows = evidence.behaviour.dropna(subset="change")
    if rows.empty:
        return None, "Behaviour was not measured; add `behaviour` to measure, and targets to the prompts."
    still = rows[(rows.change_lo <= 0) & (rows.change_hi >= 0)]
    top = rows.loc[(rows.change / rows.base.abs().clip(lower=1e-9)).abs().idxmax()]
    told = (
        f"{metric_name(top.metric)} on {top.domain} went from {number(top.base)} to {number(top.tuned)}, "
        f"{signed(top.change)} {interval(top.change_lo, top.change_hi, signed)}"
    )
    if len(still) < len(rows):
        moved = len(rows) - len(still)
        return (
            False,
            f"{moved} of {len(rows)} metrics moved beyond their interval; most, {told}: negation can undo that.",
        )
    known = rows[(rows.metric == "exact_match") & (rows.base >= ALIGNED)]
    why = (
        f"the base already answers {listing([f'{percent(row.base)} of {row.domain}' for row in known.itertuples()])} "
        "correctly, so it was aligned before"
        if len(known)
        else "either the vector was taken from other checkpoints than the behaviour, or training changed none of it"
    )
    return True, f"No metric moved beyond its interval ({told}): negation will change little; {why}."


def _not_derived(evidence: Evidence, run: Run) -> Verdict:
    rows = evidence.weights[evidence.weights.module.isin(MODULES)]
    if rows.empty:
        return None, "The weights were not measured."
    median, relative = float(rows.cosine.median()), float(rows.relative_norm.median())
    if median < UNRELATED:
        return True, (
            f"The median cosine between a matrix of both models is {number(median)} (independent models: 0, and a "
            f"relative norm of 1.41; here {number(relative)}): this model does not come from this base. "
            "If its neurons are in another order, `tv align` shows it."
        )
    return False, f"The median cosine between a matrix of both models is {number(median)}: one comes from the other."


def _rounding(evidence: Evidence, run: Run) -> Verdict:
    rows = evidence.weights.dropna(subset="noise_share")
    if rows.empty:
        moved = int((evidence.weights.relative_norm > 0).sum())
        return None, f"The share of rounding is not known: {moved} of {len(evidence.weights)} modules moved."
    median, most = float(rows.noise_share.median()), rows.loc[rows.noise_share.idxmax()]
    where = f"{most.module} of layer {most.layer}: {percent(most.noise_share)}"
    if median > MOSTLY_NOISE:
        return True, (
            f"Rounding to the stored dtype explains {percent(median)} of ‖T‖² in the median module ({where}): most of "
            "this vector is noise; compare checkpoints that were saved in a wider dtype."
        )
    return False, f"Rounding explains {percent(median)} of ‖T‖² in the median module (most in {where})."


def _nothing_new(evidence: Evidence, run: Run) -> Verdict:
    rows = evidence.alignment.dropna(subset="ssa")  # of what moved
    at = rows[np.isclose(rows.epsilon.astype(float), 0.05) & (rows.side == "left")]
    fixed = rows[rows.epsilon.isna() & (rows.side == "left")]
    if at.empty or fixed.empty:
        return None, "SSA at ε = 0.05 was not measured, or nothing moved."
    ssa, null, kappa = float(at.ssa.mean()), float(at.ssa_null.mean()), float(fixed.kappa.mean())
    told = (
        f"SSA at ε = 0.05 is {number(ssa)} on average and {number(null)} for a T of no direction; in the leading "
        f"tenth of the directions κ is {number(kappa)} (0: no direction, 1: nothing outside)"
    )
    if kappa > WITHIN:
        return True, f"{told}: fine-tuning wrote mostly into directions that the base already uses most."
    if ssa > 0.9:
        return False, f"{told}: the high SSA is that of the matrices' shapes, and says nothing of new directions."
    return False, f"{told}."


def _at_the_floor(evidence: Evidence, run: Run) -> Verdict:
    if evidence.flips.empty or "noise_floor" not in run.tables:
        return None, "Gate flips or their noise floor were not measured; leave `noise_floor: true` and measure gates."
    floor = run["noise_floor"]
    flips = evidence.flips.groupby("layer").flip_rate.mean()
    limit = floor[floor.layer.isin(flips.index)].groupby("layer").flip_rate_hi.max()
    above = int((flips.reindex(limit.index) > limit).sum())
    told = (
        f"gates flip at {percent(float(flips.mean()))} of places on average, and at {percent(float(limit.mean()))} if "
        f"the base is computed in {listing(sorted(floor.precision.unique()))}"
    )
    if above == 0:
        return True, f"In no layer more than rounding does: {told}."
    return False, f"In {above} of {len(limit)} layers more than rounding does: {told}."


_JUDGES: Mapping[str, Callable[[Evidence, Run], Verdict]] = {
    "little_change": _little_change,
    "not_derived": _not_derived,
    "rounding": _rounding,
    "nothing_new": _nothing_new,
    "gates_at_the_floor": _at_the_floor,
}


def _conflicts(suite: Mapping[str, object]) -> Iterator[Finding]:
    """Whether two vectors undo each other where they are added: over all weights, or in single modules."""
    base, tuned = str(suite["base"]), {str(k): str(v) for k, v in dict(suite["tuned"]).items()}  # type: ignore[call-overload]
    try:
        rows = cosine(base, tuned)
    except InputError as error:
        yield Finding(" + ".join(tuned), "conflict", None, f"The checkpoints could not be compared: {error}")
        return
    for (a, b), pair in rows[rows.scope != "layer"].groupby(["a", "b"], sort=False):
        tried = pair.dropna(subset="cosine_shared_z")
        against = tried[(holm(stats.norm.cdf(tried.cosine_shared_z)) < 0.05) & (tried.cosine < -OPPOSED)]
        whole, modules = pair[pair.scope == "whole"].iloc[0], against[against.scope == "module"].sort_values("cosine")
        told = (
            f"cosine {number(whole.cosine)} over all weights, {number(whole.cosine_shared_z)} standard deviations from "
            "what unrelated coefficients in the same directions give"
        )
        names = [f"{row.module} {row.layer} ({number(row.cosine)})" for row in modules.head(5).itertuples()]
        where = f", by themselves {len(modules)} of {len(tried) - 1} modules, first {listing(names)}" if names else ""
        sentence = (
            f"The two pull against each other ({told}){where}: their sum loses some of both."
            if len(against)
            else f"Neither the whole nor a module pulls against the other ({told}, nowhere below −{OPPOSED} beyond "
            "chance); only a run shows whether their sum works."
        )
        yield Finding(f"{a} + {b}", "conflict", bool(len(against)), sentence)
