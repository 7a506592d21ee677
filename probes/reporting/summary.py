"""What fine-tuning did, in three sentences: what was learnt, what was lost, and where. Each clause names its figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from probes.attribution.effects import BACKWARD, FORWARD
from probes.reporting.behaviour_sentences import said_of_each, size_of
from probes.reporting.causes import fewest, nothing_to_name, shown_domain
from probes.reporting.claim import Claim
from probes.reporting.evidence import Evidence
from probes.reporting.moved import groups, moved, moves, place
from probes.reporting.named import named_effects, named_method
from probes.reporting.words import (
    change_form,
    effect_metric_name,
    estimate,
    interval,
    listing,
    metric_name,
    number,
    percent,
    prompts_of,
    signed,
    too_few,
    value_form,
)
from tv.stats.means import FEWEST

#: Domains that a sentence describes; others are named.
_DESCRIBED = 2
#: What is said of a change that cannot be decided from these prompts.
UNSURE = "which these prompts cannot distinguish from chance"


@dataclass(frozen=True)
class Summary:
    """The clauses of each sentence."""

    learnt: list[Claim]
    lost: list[Claim]
    where: list[Claim]
    trained: list[Claim] = field(default_factory=list)  # where the tuned model is an adapter


def summary(evidence: Evidence, choices: pd.DataFrame) -> Summary:
    """The three sentences on one tuned model.

    Args:
        evidence: Its tables.
        choices: How often the two models' first choices differ (`probes.reporting.examples.shares_that_differ`), which
            is said where no prompt has a target.
    """
    learnt, lost = learnt_and_lost(evidence.behaviour, choices)
    where = [*_together(evidence), *_alone(evidence), *_weights(evidence)]
    return Summary(learnt, lost, where[:2], _trained(evidence))


def learnt_and_lost(behaviour: pd.DataFrame, choices: pd.DataFrame) -> tuple[list[Claim], list[Claim]]:
    """What is clearly better and what is clearly worse, and answers that were lost although chance may do that."""
    graded = behaviour[behaviour.base.notna()]
    if graded.empty:
        return _without_targets(choices)
    judged = said_of_each(graded)
    if judged.empty:
        nothing = "no metric that has a better and a worse was measured of both models"
        return [Claim(nothing, "behaviour", "no metric")], [Claim(nothing, "behaviour", "no metric")]
    better, worse = (
        Claim(
            f"{_turned(graded, outcome)}no measured change is clearly for the {way}{_why(judged)}",
            "behaviour",
            "measured change",
        )
        for way, outcome in (("better", "gained"), ("worse", "lost"))
    )
    return _better(judged) or [better], _worse(graded, judged) or [worse]


def _turned(graded: pd.DataFrame, outcome: str) -> str:
    """How many answers were gained or lost over all domains, before what may not be said of them."""
    rows = graded[graded[outcome].notna()]
    rows = rows[rows.metric == rows.metric.iloc[0]] if len(rows) else rows
    return f"{turned:.0f} of {rows.n.sum():.0f} answers {outcome}, but " if (turned := rows[outcome].sum()) else ""


def _without_targets(choices: pd.DataFrame) -> tuple[list[Claim], list[Claim]]:
    lost = [Claim("not measured: no answer of this run is graded as right or wrong", "behaviour", "not measured")]
    if choices.empty:
        nothing = "not measured: no answer is graded, and no first choices were kept"
        return [Claim(nothing, "behaviour", "not measured")], lost
    told = [_differ(row) for row in choices.head(_DESCRIBED).to_dict("records")]
    rest = f" ({len(choices) - _DESCRIBED} more domains below)" if len(choices) > _DESCRIBED else ""
    text = f"no answer is graded; the models' first choices of the next token differ after {listing(told)}{rest}"
    return [Claim(text, "prompts", "first choices")], lost


def _differ(row: dict[Any, Any]) -> str:
    ends = interval(row["lo"], row["hi"], percent) or too_few([row["domain"]], [row["units"]])
    return f"{row['differ']} of {row['n']} {prompts_of(row['domain'])} ({percent(row['share'])}; {ends})"


def _better(judged: pd.DataFrame) -> list[Claim]:
    rows = judged[judged.said == "better"].drop_duplicates("domain")
    claims = [_went(row) for row in rows.head(_DESCRIBED).to_dict("records")]
    rest = list(rows.domain[_DESCRIBED:])
    return [*claims, Claim(f"also better: {listing(rest)}", "behaviour", "also better")] if rest else claims


def _worse(graded: pd.DataFrame, judged: pd.DataFrame) -> list[Claim]:
    """What got worse, and answers that were lost although these prompts cannot tell."""
    claims: list[Claim] = []
    clear: list[str] = []  # of each claim the domain that got worse; nothing where these prompts cannot tell
    for domain, rows in graded.groupby("domain", sort=False):
        worse = judged[(judged.domain == domain) & (judged.said == "worse")]
        lost = rows[(rows.lost > rows.gained) & ~rows.metric.isin(worse.metric) & (rows.said != "")]
        claims += [_lost(row) for row in lost.head(1).to_dict("records")]
        claims += [_went(row) for row in worse.head(1).to_dict("records")]
        clear += [""] * min(len(lost), 1) + [str(domain)] * min(len(worse), 1)
    rest = [domain for domain in clear[2 * _DESCRIBED :] if domain]
    also = [Claim(f"also worse: {listing(rest)}", "behaviour", "also worse")] if rest else []
    return [*claims[: 2 * _DESCRIBED], *also]


def _went(row: dict[Any, Any]) -> Claim:
    """A clear change: both values, the change with its interval, and how many answers turned."""
    form, name = value_form(row["metric"]), metric_name(row["metric"])
    verb = "rises" if row["change"] > 0 else "falls"
    text = f"on {prompts_of(row['domain'])} {name} {verb} from {form(row['base'])} to {form(row['tuned'])}"
    return Claim(f"{text} ({_change(row)})", "behaviour", name)


def _lost(row: dict[Any, Any]) -> Claim:
    form, right = value_form(row["metric"]), round(row["base"] * row["n"])
    text = f"on {prompts_of(row['domain'])} {row['lost']:.0f} of {right} right answers become wrong, {UNSURE}"
    values = f"{metric_name(row['metric'])} {form(row['base'])} → {form(row['tuned'])}; {_change(row, turned=False)}"
    return Claim(f"{text} ({values})", "behaviour", "right answers")


def _change(row: dict[Any, Any], turned: bool = True) -> str:
    form = change_form(row["metric"])
    parts = [estimate(row["change"], row["change_lo"], row["change_hi"], form)]
    if turned and pd.notna(row["gained"]):
        parts.insert(0, f"{row['gained']:.0f} of {row['n']} answers gained, {row['lost']:.0f} lost")
    elif turned:
        parts.append(size_of(row["n"], row["units"]))
    if row["units"] < FEWEST:
        parts.append(too_few([row["domain"]], [row["units"]]))
    return "; ".join(parts)


def _why(judged: pd.DataFrame) -> str:
    """Why no more can be said: too few prompts, or how many changes are unclear, or that all are rounding."""
    few, sized = judged[judged.units < FEWEST].drop_duplicates("domain"), judged[judged.units >= FEWEST]
    small = too_few(few.domain, few.units) if len(few) else ""
    if sized.empty:
        return f": {small}" if small else ""
    if (judged.said == "within noise").all():
        return ": all are within rounding noise"
    unsure = int((sized.said == "cannot tell").sum())
    chance = f"{unsure} of {len(sized)} changes cannot be distinguished from chance" if unsure else ""
    return "".join(f"; {why}" for why in (chance, small) if why)


def _together(evidence: Evidence) -> list[Claim]:
    """How few components together carry the change, or without a curve of grafts undo it."""
    total = len(evidence.effects[["layer", "component"]].drop_duplicates())
    if evidence.areas.empty or not total:
        return []
    for direction, figure, moved_together, does in (
        (FORWARD, "curve-graft", "put into the base together", "give"),
        (BACKWARD, "curve-revert", "taken back together", "undo"),
    ):
        if enough := fewest(evidence.areas, direction):
            n = f"{enough.n} of the {total}" if enough.n < total else f"only all {total}"
            text = f"{n} components, {moved_together}, {does} 80 % of the change on all prompts"
            return [Claim(text, figure, moved_together)]
    return []


def _alone(evidence: Evidence) -> list[Claim]:
    """The largest effect of a single component that may be named, or that there is none."""
    effects = evidence.effects
    if effects.empty:
        return []
    metric, domain = effect_metric_name(str(effects.metric.iloc[0])), shown_domain(effects, evidence.behaviour)
    over = f"on the {metric} on {prompts_of(domain)}"
    if named := named_method(evidence):
        top = named_effects(evidence, named)[0]
        size = f"{estimate(top.effect, top.lo, top.hi, signed)} {over}"
        text = f"the largest clear effect of a single component is that of {top.component} ({named}: {size})"
        return [Claim(text, f"{named}-ranked", "largest clear effect")]
    reason = nothing_to_name(effects[effects.domain == domain])
    text = f"no single component has a clear effect {over}{': ' * bool(reason)}{reason}"
    return [Claim(text, "causes", "no single component")]


def _weights(evidence: Evidence) -> list[Claim]:
    rows = moved(evidence.all_weights)
    if len(rows):
        top = rows.loc[rows.relative_norm.idxmax()]
        text = (
            f"weights moved most in {place(top, evidence.n_layers)} (‖T‖/‖W‖ = {number(top.relative_norm)}; median "
            f"{number(rows.relative_norm.median())})"
        )
        in_map = "expert" not in rows or top.expert < 0
        return [Claim(text, "norm" if in_map else "weights", "weights moved most")]
    if evidence.all_weights.empty:
        return []
    others = evidence.all_weights[moves(evidence.all_weights)]
    if names := groups(others):
        return [Claim(f"no matrix of the language model moved, only {listing(names)}", "others", "no matrix")]
    if len(others):
        return [Claim("no matrix moved, only gains or biases", "weights", "no matrix")]
    if evidence.unseen:
        return []
    return [Claim("no weight moved: the models have the same weights", "weights", "no weight")]


def _trained(evidence: Evidence) -> list[Claim]:
    return [Claim(evidence.trained, "pair", "an adapter")] if evidence.trained else []


#: The sentences of a summary by label, in order, and the field of each.
SENTENCES: dict[str, Callable[[Summary], list[Claim]]] = {
    "Trained": lambda told: told.trained,
    "Learnt": lambda told: told.learnt,
    "Lost": lambda told: told.lost,
    "Where": lambda told: told.where,
}
