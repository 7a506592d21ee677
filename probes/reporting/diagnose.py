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

from probes.reporting.alignment import GAP
from probes.reporting.evidence import Evidence, gather, rows_of
from probes.reporting.moved import moves, place
from probes.reporting.words import (
    change_form,
    interval,
    listing,
    metric_name,
    number,
    percent,
    too_few,
    value_form,
)
from probes.store.run import Run
from tv.architecture.anatomy import MODULES
from tv.errors import InputError
from tv.measures.cosine import cosine
from tv.runtime.compute import Compute
from tv.stats.families import holm
from tv.stats.means import FEWEST, mean_interval

#: Below this cosine of W_base and W_tuned the two are unrelated: no fine-tune moves that far.
UNRELATED = 0.5
#: Above this share of ‖T‖², rounding explains most of T.
MOSTLY_NOISE = 0.5
#: From this exact match on, the base had hardly anything to learn.
ALIGNED = 0.9
#: Above this κ in the leading tenth of the directions, T lies mostly where W does.
WITHIN = 0.5
#: Two vectors whose cosine is above minus this lose too little of each other for a conflict.
OPPOSED = 0.05
#: Said of a pair that holds the same weights.
_STILL = "Of {} modules 0 moved: both checkpoints hold the same weights."


@dataclass(frozen=True)
class Finding:
    """One signature on one tuned model; `holds` is None where the run cannot tell."""

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
        the run did not measure what it needs, or its prompts cannot tell.

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
    rows = evidence.behaviour[evidence.behaviour.said != ""]
    if rows.empty:
        return None, "Behaviour was not measured; add `behaviour` to measure, and targets to the prompts."
    changed, unsure = rows[rows.said == "changed"], rows[rows.said == "cannot tell"]
    if len(changed):
        return False, f"{len(changed)} of {len(rows)} metrics changed; most, {_most(changed)}: negation can undo that."
    if len(unsure):
        few = unsure[unsure.units < FEWEST].drop_duplicates("domain")
        why = too_few(few.domain, few.units) if len(few) else f"most, {_most(unsure)}"
        by_itself = not len(few) and (unsure.p < 0.05).any()  # then an interval in the sentence may leave 0 out
        corrected = ", corrected for their number" if by_itself else ""
        return None, f"No metric changed for sure, and {len(unsure)} of {len(rows)} cannot be told{corrected}: {why}."
    most = f"all {len(rows)} are within noise or too small to matter ({_most(rows)})"
    weights = evidence.all_weights
    if len(weights) and not moves(weights).any():
        return True, f"No metric changed: {most}. Both checkpoints hold the same weights: there is nothing to negate."
    known = rows[(rows.metric == "exact_match") & (rows.base >= ALIGNED)]
    why = (
        f"the base already answers {listing([f'{percent(row.base)} of {row.domain}' for row in known.itertuples()])} "
        "correctly, so it was aligned before"
        if len(known)
        else "either the vector was taken from other checkpoints than the behaviour, or training changed none of it"
    )
    return True, f"No metric changed: {most}. Negation will change little; {why}."


def _most(rows: pd.DataFrame) -> str:
    """The row that moved most for its size."""
    top = rows.loc[(rows.change / rows.base.abs().clip(lower=1e-9)).abs().idxmax()]
    value, change = value_form(top.metric), change_form(top.metric)
    return (
        f"{metric_name(top.metric)} on {top.domain} went from {value(top.base)} to {value(top.tuned)}, "
        f"{change(top.change)} {interval(top.change_lo, top.change_hi, change)}".rstrip()
    )


def _not_derived(evidence: Evidence, run: Run) -> Verdict:
    rows = evidence.all_weights[evidence.all_weights.module.isin(MODULES)].dropna(subset="cosine")
    if rows.empty:
        return None, "The weights were not measured."
    median, others = float(rows.cosine.median()), rows[rows.cosine < UNRELATED]
    if median < UNRELATED:
        return True, (
            f"The median cosine between a matrix of both models is {number(median)} (independent models: 0, and a "
            f"relative norm of 1.41; here {number(float(rows.relative_norm.median()))}): this model does not come from "
            "this base. If its neurons are in another order, `tv align` shows it."
        )
    if len(others):
        kinds = listing([f"{module} ({n})" for module, n in others.module.value_counts(sort=False).items()])
        return True, (
            f"In {len(others)} of {len(rows)} matrices the cosine of both models is at most "
            f"{number(float(others.cosine.max()))}, and {number(median)} in the median one: {kinds}. These do not come "
            "from this base, or their neurons or heads are in another order: `tv align` shows which."
        )
    least = rows.loc[rows.cosine.idxmin()]
    return False, (
        f"The cosine between a matrix of both models is at least {number(float(least.cosine))} ({least.module} of "
        f"layer {least.layer}), and {number(median)} in the median one: one comes from the other."
    )


def _rounding(evidence: Evidence, run: Run) -> Verdict:
    """Of the modules that moved; they are all there are, so that their median has no interval."""
    moved = evidence.all_weights[moves(evidence.all_weights)]
    rows = moved.dropna(subset="noise_share")
    if moved.empty:
        return None, _STILL.format(len(evidence.all_weights))
    if rows.empty:
        return None, f"{len(moved)} modules moved, and of none the share of rounding is known."
    median, most = float(rows.noise_share.median()), rows.loc[rows.noise_share.idxmax()]
    told = (
        f"of ‖T‖² in the median of the {len(rows)} modules that moved (most in {place(most, evidence.n_layers)}: "
        f"{percent(most.noise_share)})"
    )
    if median > MOSTLY_NOISE:
        return True, (
            f"Rounding to the stored dtype explains {percent(median)} {told}: most of this vector is noise; compare "
            "checkpoints that were saved in a wider dtype."
        )
    return False, f"Rounding explains {percent(median)} {told}."


def _nothing_new(evidence: Evidence, run: Run) -> Verdict:
    rows = evidence.alignment[evidence.alignment.ssa > 0]  # what moved
    at = rows[np.isclose(rows.epsilon.astype(float), 0.05) & (rows.side == "left")]
    fixed = rows[rows.epsilon.isna() & (rows.side == "left")]
    if len(evidence.all_weights) and not moves(evidence.all_weights).any():
        return None, _STILL.format(len(evidence.all_weights))
    if at.empty or fixed.empty:
        return None, f"SSA at ε = 0.05 is known of {len(at)} matrices that moved, of the leading tenth of {len(fixed)}."
    ssa, null, kappa = float(at.ssa.mean()), float(at.ssa_null.mean()), float(fixed.kappa.mean())
    deviations = (fixed.kappa / fixed.ssa_z).dropna().astype(float)  # of κ under the rotation null
    chance = 1.96 * float(np.sqrt((deviations**2).sum())) / max(len(deviations), 1)
    told = (
        f"Over the {len(at)} matrices that moved, SSA at ε = 0.05 is {number(ssa)} on average and {number(null)} for a "
        f"T of no direction; in the leading tenth of the directions κ is {number(kappa)} (no direction: 0 ± "
        f"{number(chance, 2)}; nothing outside: 1)"
    )
    if kappa > max(WITHIN, chance):
        return True, f"{told}: fine-tuning wrote mostly into directions that the base already uses most."
    if ssa > 0.9 and ssa - null < GAP:
        return False, f"{told}: the high SSA is that of the matrices' shapes, and says nothing of new directions."
    return False, f"{told}."


def _at_the_floor(evidence: Evidence, run: Run) -> Verdict:
    """Whether flips exceed rounding's in no layer, all layers being one family."""
    floor = rows_of(run, "noise_floor", "precision layer flip_rate flip_rate_hi", []).dropna(subset="flip_rate")
    if evidence.flips.empty or floor.empty:
        return None, "Gate flips or their noise floor were not measured; leave `noise_floor: true` and measure gates."
    limit = floor.flip_rate_hi.fillna(floor.flip_rate).groupby(floor.layer).max()
    rates, clusters = _rates_of_prompts(run, evidence.tuned)
    rates = rates[[layer for layer in rates if layer in limit.index]]
    beyond = mean_interval(rates - limit[rates.columns], clusters)
    above = int(((holm(beyond.p) < 0.05) & (beyond.mean > 0)).sum())
    told = (
        f"gates flip at {percent(float(rates.mean().mean()))} of places on average, and at "
        f"{percent(float(limit.mean()))} if the base is computed in {listing(sorted(floor.precision.unique()))}"
    )
    if above:
        return False, f"In {above} of {rates.shape[1]} layers more than rounding does: {told}."
    if (beyond.mean <= 0).all():
        return True, f"In no layer more than rounding does: {told}."
    units = len(set(clusters))
    why = too_few(["all prompts"], [units]) if units < FEWEST else "in some layers more than rounding, not for sure"
    return None, f"These prompts cannot tell ({why}): {told}."


def _rates_of_prompts(run: Run, tuned: str) -> tuple[pd.DataFrame, list[str]]:
    """(prompts × layers, the flip rate of each; the cluster of every prompt)."""
    gates = rows_of(run, "gates", "prompt_id layer flip_rate", [("tuned", "==", tuned)])
    rates = gates.pivot_table(index="prompt_id", columns="layer", values="flip_rate", observed=True)
    prompts = run.df("prompts", columns=["prompt_id", "cluster"]).set_index("prompt_id").cluster
    return rates, [str(prompt if pd.isna(name) else name) for prompt, name in prompts.reindex(rates.index).items()]


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
        rows = cosine(base, tuned, compute=Compute(progress=False))
    except InputError as error:
        yield Finding(" + ".join(tuned), "conflict", None, f"The checkpoints could not be compared: {error}")
        return
    for (a, b), pair in rows[rows.scope != "layer"].groupby(["a", "b"], sort=False):
        yield Finding(f"{a} + {b}", "conflict", *conflict_of(pair))


def conflict_of(pair: pd.DataFrame) -> Verdict:
    """Whether two vectors undo each other, and the sentence: `pair` is `tv.cosine` of them, the whole and its modules.

    One family of tests holds the whole and every module.
    """
    if np.isnan(pair[pair.scope == "whole"].cosine.iloc[0]):
        return None, "One of the two vectors is 0, so that nothing can pull against it."
    tried = pair.dropna(subset="cosine_shared_z")
    if tried.empty:
        return False, "Nothing moved in both, so that neither pulls against the other."
    against = tried[(holm(stats.norm.cdf(tried.cosine_shared_z)) < 0.05) & (tried.cosine < -OPPOSED)]
    whole, modules = pair[pair.scope == "whole"].iloc[0], against[against.scope == "module"].sort_values("cosine")
    told = (
        f"cosine {number(whole.cosine)} over all weights, {number(whole.cosine_shared_z)} standard deviations from "
        "what unrelated coefficients in the same directions give"
    )
    names = [f"{row.module} {row.layer} ({number(row.cosine)})" for row in modules.head(5).itertuples()]
    where = f", by themselves {len(modules)} of {len(tried) - 1} modules, first {listing(names)}" if names else ""
    if len(against):
        return True, f"The two pull against each other ({told}){where}: their sum loses some of both."
    return False, (
        f"Neither the whole nor a module pulls against the other ({told}, nowhere below −{OPPOSED} beyond chance); "
        "only a run shows whether their sum works."
    )
