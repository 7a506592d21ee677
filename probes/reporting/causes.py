"""Which components carry the change, in sentences."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from probes.attribution.curves import RANDOM
from probes.attribution.effects import BACKWARD, FORWARD, focus
from probes.attribution.units import component_name
from probes.reporting.behaviour import REPEATS
from probes.reporting.words import (
    effect_metric_name,
    estimate,
    listing,
    number,
    prompts_of,
    signed,
    too_few,
)
from probes.store.schemas import ALL_DOMAINS
from tv.stats.families import benjamini_hochberg
from tv.stats.means import FEWEST

#: Components named per method.
NAMED = 3
#: A q value below this counts as significant, and a p value that is corrected for all that a sentence is about.
FOUND = 0.05
#: Rank correlations from here on are called alike.
ALIKE = 0.7


def causes_sentences(effects: pd.DataFrame, behaviour: pd.DataFrame) -> list[str]:
    """The leading components of each method where effects are largest, how they add up, and spill-over.

    A component is named where the interval that holds for all components and methods at once leaves 0 out, and its
    effect is more than rounding alone can make.
    """
    if effects.empty:
        return []
    metric, domain = str(effects.metric.iloc[0]), shown_domain(effects, behaviour)
    shown = effects[effects.domain == domain]
    most = "" if domain == ALL_DOMAINS else ", where it changed most"
    sentences = [f"{_kind(shown)} on the {effect_metric_name(metric)} over {_over(shown)}{most}."]
    if reason := nothing_to_name(shown):
        sentences.append(f"No component is named: {reason}.")
    else:
        sentences[0] = (
            f"{sentences[0][:-1]}: mean [95 % interval that holds for all of them at once]; “held out” is the effect "
            "of a component of that rank on prompts that were not used to rank it."
        )
        q = pd.Series(benjamini_hochberg(shown.p.astype(float)), shown.index)
        sentences += [_leading(str(method), family, q) for method, family in shown.groupby("method", sort=False)]
        if _only_together(shown):
            sentences.append("No component alone shows a clear effect (graft); taking one away does (revert).")
        families = shown.dropna(subset="effect").groupby("method", sort=False)
        sums = {method: family.effect.sum() for method, family in families if _moved_all(family)}
        if sums and (total := total_change(behaviour, metric, domain)) is not None:
            added = listing([f"{signed(value)} by {method}" for method, value in sums.items()])
            sentences.append(
                f"The whole change there is {signed(total)}; single effects add up to {added}: where the two differ, "
                "components work together."
            )
    others = effects[(effects.domain != domain) & (effects.domain != ALL_DOMAINS)]
    if domain != ALL_DOMAINS and len(others) and not effects.n.isna().all():
        sentences.append(_elsewhere(others))
    return sentences


def leaders(effects: pd.DataFrame) -> pd.DataFrame:
    """The rows that may be named, largest first: clear of 0 among all that were measured, and above rounding."""
    told = (effects.lo_all.astype(float) > 0) | (effects.hi_all.astype(float) < 0)
    rows = effects[told & ~effects.within_noise.eq(True)]
    return rows.loc[rows.effect.abs().sort_values(ascending=False, kind="stable").index]


def told_method(shown: pd.DataFrame) -> str:
    """The method whose effects come first: the first of graft, revert, path and others that names a component."""
    methods = sorted(dict.fromkeys(map(str, shown.method)), key=lambda name: FIRST.get(name, len(FIRST)))
    return next((name for name in methods if len(leaders(shown[shown.method == name]))), "")


#: The methods whose effects come first.
FIRST = {"graft": 0, "revert": 1, "path": 2}


def nothing_to_name(effects: pd.DataFrame) -> str:
    """Why none of these effects could be named, whatever they came to; empty where one could be."""
    known = effects.dropna(subset="effect")
    if known.within_noise.eq(True).all():
        return "none moves it by more than rounding alone can"
    n = known.n.astype(float).max()
    if pd.isna(n):
        return "this run is older than intervals that hold for all at once; `probes attribute` measures them"
    if n < FEWEST:
        domain = str(known.domain.iloc[0])
        return too_few([prompts_of(domain) if domain == ALL_DOMAINS else domain], [n])
    if known.lo_all.isna().all() and known.lo.notna().any():
        return f"{n:.0f} prompts, or clusters of them, are too few to distinguish any of {len(known)} effects from 0"
    return ""


def shown_domain(effects: pd.DataFrame, behaviour: pd.DataFrame) -> str:
    """The domain whose metric changed most; where no change was measured, that of the largest effect.

    Domains of too few prompts for an interval, where nothing could be named, come after all others.
    """
    metric, enough = str(effects.metric.iloc[0]), effects[effects.n.astype(float) >= FEWEST]
    effects = enough if len(enough) else effects
    by = REPEATS[metric] if REPEATS.get(metric) in set(behaviour.metric) else metric
    changes = {
        str(domain): abs(change)
        for domain in dict.fromkeys(effects.domain)
        if domain != ALL_DOMAINS and (change := total_change(behaviour, by, str(domain))) is not None
    }
    return max(changes, key=lambda domain: changes[domain]) if changes else focus(effects)


def domains_in(rows: pd.DataFrame, effects: pd.DataFrame, behaviour: pd.DataFrame) -> list[str]:
    """The domains of a table: the shown one first, then all prompts, then the others."""
    first = shown_domain(effects, behaviour) if len(effects) else ALL_DOMAINS
    return sorted(dict.fromkeys(map(str, rows.domain)), key=lambda domain: (domain != first, domain != ALL_DOMAINS))


def _kind(shown: pd.DataFrame) -> str:
    """What the methods measure: only some are exact."""
    methods = set(shown.method)
    if methods == {"path"}:
        return "Shares of the change (path)"
    if methods <= {"graft", "revert"}:
        return "Exact effects"
    return "Effects of components"


def _over(rows: pd.DataFrame) -> str:
    domain, n = str(rows.domain.iloc[0]), rows.n.astype(float).max()
    prompts = prompts_of(domain)
    return f"{prompts} (n = {n:.0f})" if pd.notna(n) else prompts


def _only_together(shown: pd.DataFrame) -> bool:
    """Whether graft names nothing, and what revert names lies beyond what graft allows for the same component."""
    at = ["layer", "component"]
    alone, away = (leaders(shown[shown.method == method]) for method in ("graft", "revert"))
    both = away.merge(shown[shown.method == "graft"], on=at, suffixes=("", "_alone"))
    beyond = (both.lo_all > both.hi_all_alone) | (both.hi_all < both.lo_all_alone)
    return alone.empty and bool(beyond.any())


def _elsewhere(others: pd.DataFrame) -> str:
    """The largest effect of each other domain, of those that are clear of 0 among all of all other domains."""
    known = others.dropna(subset="effect")
    if (n := known.groupby("domain", sort=False).n.max().astype(float)).max() < FEWEST:
        return f"On the other domains no effect is clear of 0: {too_few(n.index, n)}."
    told = leaders(known[known.p.astype(float) < FOUND / max(1, int(known.p.notna().sum()))])
    if told.empty:
        return f"On the other domains none of {len(known)} effects of single components is clear of 0."
    by_domain = told.groupby("domain", sort=False)
    parts = [f"{_over(rows)}: {_effect(rows.iloc[0])} ({rows.method.iloc[0]})" for _, rows in by_domain]
    return "Largest effects on the other domains, " + "; ".join(parts) + "."


def _leading(method: str, family: pd.DataFrame, q: pd.Series) -> str:
    told, significant = leaders(family), int((q[family.index] < FOUND).sum())
    if (reason := nothing_to_name(family)) and told.empty:
        return f"{method.capitalize()}: {reason}."
    moved = "" if _moved_all(family) else " moved"
    counted = f"{significant} of {len(family)}{moved} components have q < {FOUND}."
    if told.empty:
        largest = family.loc[[family.effect.abs().astype(float).idxmax()]].iloc[0]
        none = "no single component has a clear effect"
        return f"{method.capitalize()}: {none}; the largest is {_effect(largest)}. {counted}"
    named = "; ".join(_effect(row) for _, row in told.head(NAMED).iterrows())
    return f"{method.capitalize()}: {named}. {counted}"


def _moved_all(family: pd.DataFrame) -> bool:
    """Whether every component was moved, and not only those that path leads with and a sample."""
    return "chosen" not in family or not family.chosen.eq("leading").any()


def _effect(row: pd.Series) -> str:
    return f"{_name(row)} {estimate(row.effect, row.lo_all, row.hi_all, signed)}{_held_out(row, ', {}')}"


def _held_out(row: pd.Series, form: str) -> str:
    return form.format(f"held out {signed(row.held_out)}") if pd.notna(row.held_out) else ""


def _name(row: pd.Series) -> str:
    return component_name(row.layer, row.component)


def total_change(behaviour: pd.DataFrame, metric: str, domain: str) -> float | None:
    """The mean change of a metric over all prompts of a domain (or of all) that have it."""
    rows = behaviour[(behaviour.metric == metric) & behaviour.change.notna()]
    rows = rows if domain == ALL_DOMAINS else rows[rows.domain == domain]
    return float((rows.change * rows.n).sum() / rows.n.sum()) if len(rows) else None


@dataclass(frozen=True)
class Enough:
    """How few components together make 80 % of the change, by which ranking, and in random order."""

    n: int
    ranking: str
    by_chance: str  # of random orders, from the smallest to the largest


def fewest(areas: pd.DataFrame, direction: str) -> Enough | None:
    """Of all rankings the one that needs the fewest components in this direction.

    None where no curve gets there, or the change on all prompts is not clear of 0, so that it has no 80 %.
    """
    rows = areas.dropna(subset="n_enough")
    rows = rows[(rows.direction == direction) & rows.lo.notna().any()]
    ranked = rows[rows.ranking != RANDOM]
    if ranked.empty:
        return None
    best = ranked.loc[ranked.n_enough.idxmin()]
    return Enough(int(best.n_enough), str(best.ranking), _range(rows.n_enough[rows.ranking == RANDOM]))


_NOT_CLEAR = (
    "The change on all prompts together is not clear of 0, so this run cannot say how many components make most of it."
)


def _range(counts: pd.Series) -> str:
    """The smallest and the largest, in words; empty where there are none."""
    return " to ".join(dict.fromkeys(f"{n:.0f}" for n in (counts.min(), counts.max()))) if len(counts) else ""


def together_sentences(areas: pd.DataFrame) -> list[str]:
    """How many components, moved together, are enough in each direction, beside random orders."""
    if areas.empty:
        return []
    sentences = []
    for direction, does in ((FORWARD, "In the base, 80 % of the change needs"), (BACKWARD, "Undoing 80 % of it takes")):
        if enough := fewest(areas, direction):
            chance = f", {enough.by_chance} in random order" if enough.by_chance else ""
            some = "1 component" if enough.n == 1 else f"{enough.n} components"
            sentences.append(f"{does} {some} (all prompts; ranked by {enough.ranking}{chance}).")
    return sentences or [_NOT_CLEAR]


def agreement_sentences(agreement: pd.DataFrame) -> list[str]:
    """How far graft and revert agree on the order of the components over all prompts, where that was measured.

    Args:
        agreement: Rows of `agreement` over components and all prompts.
    """
    if agreement.empty:
        return []
    rows = agreement[(agreement.method == "graft") & (agreement.reference == "revert")].dropna(subset="rho")
    return [
        f"Graft and revert {_ALIKE[_how_alike(row)]}: rank correlation {estimate(row.rho, row.lo, row.hi, _digits)} "
        f"over {row.n} components, all prompts."
        for _, row in rows.head(1).iterrows()
    ]


_ALIKE = {
    "alike": "agree on the order of the components",
    "partly": "only partly agree on the order of the components",
    "opposite": "order the components in opposite ways",
    "unclear": "do not clearly agree on the order of the components",
}


def _how_alike(row: pd.Series) -> str:
    """By the interval; where there is none, by nothing."""
    if not (row.lo > 0 or row.hi < 0):
        return "unclear"
    return "opposite" if row.rho < 0 else "alike" if row.rho >= ALIKE else "partly"


def _digits(value: float | None) -> str:
    return number(value, 2)
