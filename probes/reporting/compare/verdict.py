"""What several entries say side by side, in sentences with their numbers. Pure: entries and tables in, strings out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probes.reporting.causes import FIRST
from probes.reporting.claim import Claim
from probes.reporting.compare.entries import ORDERED, Entry, laid, one_training, shared_prompts
from probes.reporting.compare.measures import BEHAVIOUR, MEASURES, OWN_DOMAIN
from probes.reporting.named import named_effects, named_method
from probes.reporting.words import interval, listing, metric_name, number, percent, prompts_of, signed, too_few
from probes.store.schemas import ALL_DOMAINS
from tv.architecture.anatomy import MODULES, in_order
from tv.stats.change import LEAST_FLOOR
from tv.stats.families import holm
from tv.stats.means import Floats

#: The behaviour metric of the verdict: the first of these that was measured.
_SPOKEN = ("exact_match", "target_nll_per_token", "logit_diff", "target_nll", "kl")
#: Measures whose course over the order the verdict describes.
_COURSE = ("relative_norm", "flip_rate", "relative_change", *_SPOKEN)
#: (measure, domain) → the size of a difference that rounding alone can make.
Floors = Mapping[tuple[str, str], float]
#: How many orders of the entries are tried.
_ORDERS = 5040


def comparison_verdict(
    entries: Sequence[Entry], measures: pd.DataFrame, correlations: pd.DataFrame, cautions: Sequence[str]
) -> list[Claim]:
    """What differs and by how much, most important first; what was not measured is left out.

    `measures` are `measure_rows`, `correlations` are `effect_correlations`.
    """
    chosen = _method(entries)
    changes = laid(entries, lambda entry: entry.evidence.changes)
    first = next(iter(in_order(changes[changes.layer >= 0].component)), "attn")  # whose figure comes first
    sentences = [
        (_who(entries, cautions), "entries"),
        (_behaviour(entries, measures), "behaviour-by-domain"),
        (_weights(entries, measures), "weights-by-module"),
        (_furthest(measures, "flip_rate", entries[0].label), "flips"),
        (_furthest(measures, "relative_change", entries[0].label), f"change-{first}"),
        (_causes(entries, chosen), "effects"),
        (_agreement(correlations[correlations.method == chosen]), "agreement-table"),
        (course([entry.label for entry in entries], measures) if one_training(entries) else "", "order"),
    ]
    return [Claim(text, place) for text, place in sentences if text]


def _method(entries: Sequence[Entry]) -> str:
    """The method that all sentences on effects are about: of those that every entry was measured with, the first that
    names a component in most of them. Empty where they have none in common.
    """
    effects = [entry.evidence.effects for entry in entries if len(entry.evidence.effects)]
    common = set.intersection(*(set(rows.method) for rows in effects)) if effects else set()
    named = [named_method(entry.evidence) for entry in entries]
    ordered = sorted(common, key=lambda method: (-named.count(method), FIRST.get(method, len(FIRST)), method))
    return ordered[0] if ordered else ""


def _who(entries: Sequence[Entry], cautions: Sequence[str]) -> str:
    bases = len({entry.base for entry in entries})
    shared, first = len(shared_prompts(entries)), entries[0].label
    text = (
        f"{len(entries)} tuned models of {bases} {'base' if bases == 1 else 'bases'}, {shared} prompts asked of all; "
        f"differences are from {first}, the first."
    )
    if cautions:
        text += (
            " Read the caution below first."
            if len(cautions) == 1
            else f" Read the {len(cautions)} cautions below first."
        )
    return text


def _behaviour(entries: Sequence[Entry], measures: pd.DataFrame) -> str:
    rows = measures[measures.measure.isin(list(BEHAVIOUR)) & (measures.domain != ALL_DOMAINS)]
    apart = rows[rows.p.notna()]
    if apart.empty:
        few = rows.dropna(subset="n_shared").drop_duplicates("domain")
        return f"Behaviour: {too_few(few.domain, few.n_shared)}." if len(few) else ""
    floors = _floors(entries)
    clear = told_apart(apart, floors)
    if clear.empty:
        return (
            f"Behaviour: none of {len(apart)} domain × metric values can be told from {entries[0].label}'s (least p "
            f"{number(_tested(apart, floors).min(), 2)}, before the correction for {len(apart)})."
        )
    counts = f"{len(clear)} of {len(apart)} domain × metric values differ from {entries[0].label}'s"
    spoken = next((name for name in _SPOKEN if (clear.measure == name).any()), clear.measure.iloc[0])
    candidates = clear[clear.measure == spoken]
    top = candidates.loc[candidates.difference.abs().idxmax()]
    first = rows[(rows.entry == entries[0].label) & (rows.measure == spoken) & (rows.domain == top.domain)].value
    form = MEASURES[spoken].form
    against = f" against {form(first.iloc[0])}" if len(first) else ""  # the first may name the domain differently
    return (
        f"Behaviour: {counts}; furthest apart in {metric_name(spoken)} is {top.entry} on {top.domain} prompts, "
        f"{form(top.value)}{against}: {_apart(top)}."
    )


def _weights(entries: Sequence[Entry], measures: pd.DataFrame) -> str:
    text = _furthest(measures, "relative_norm", entries[0].label)
    weights = laid(entries, lambda entry: entry.evidence.weights)
    wide = weights[weights.module.isin(MODULES)].pivot(
        index=["layer", "module"], columns="entry", values="relative_norm"
    )
    wide = wide.where(wide > 0).dropna()  # what did not move in one of them has no rank there
    if not text or len(wide) < 3 or len({entry.evidence.n_layers for entry in entries}) > 1:
        return text
    rho = wide.astype(float).corr("spearman").to_numpy(copy=True)
    np.fill_diagonal(rho, np.nan)
    if np.isnan(rho).all():
        return text
    a, b = divmod(int(np.nanargmin(rho)), len(rho))
    which = "" if len(rho) == 2 else f", least in {wide.columns[a]} and {wide.columns[b]}"
    return (
        f"{text} How far each of {len(wide)} matrices moved goes together with rank correlation "
        f"{number(float(rho[a, b]), 2)}{which}."
    )


def told_apart(rows: pd.DataFrame, floors: Floors | None = None) -> pd.DataFrame:
    """The differences that stand, of all that one sentence is about; of one that rounding alone can make p is 1."""
    return rows[holm(_tested(rows, floors or {})) < 0.05]


def _tested(rows: pd.DataFrame, floors: Floors) -> Floats:
    """The p of each difference, 1 where it is no larger than the noise floor of its measure and domain."""
    least = [floors.get((row.measure, row.domain), LEAST_FLOOR) for row in rows.itertuples()]
    return rows.p.astype(float).mask(rows.difference.abs() <= least, 1.0).to_numpy()


def _floors(entries: Sequence[Entry]) -> Floors:
    """The size of a difference that rounding alone can make, by metric and domain: the largest floor of any entry."""
    tables = [entry.evidence.behaviour for entry in entries if len(entry.evidence.behaviour)]
    return pd.concat(tables).groupby(["metric", "domain"]).floor.max().to_dict() if tables else {}


def _furthest(measures: pd.DataFrame, name: str, first: str) -> str:
    """The entry that is furthest from the first in a measure, over all prompts."""
    rows = measures[(measures.measure == name) & measures.domain.isin(["", ALL_DOMAINS])]
    apart, reference = rows[rows.difference.notna() & (rows.entry != first)], rows[rows.entry == first]
    if apart.empty or reference.empty:
        return ""
    form, words = MEASURES[name].form, MEASURES[name].words
    if apart.n_shared.notna().any():  # of prompts, so that there is a test
        told = told_apart(apart)
        if told.empty:
            value = form(reference.value.iloc[0])
            return f"{words[0].upper()}{words[1:]}: {value} in {first}; no entry can be told from it."
        apart = told
    top, least = apart.loc[apart.difference.abs().idxmax()], "" if len(apart) == 1 else "furthest from it "
    return (
        f"{words[0].upper()}{words[1:]}: {form(reference.value.iloc[0])} in {first}, {least}{form(top.value)} in "
        f"{top.entry} ({_apart(top)})."
    )


def _apart(row: pd.Series) -> str:
    change = MEASURES[row.measure].change
    text = f"{change(row.difference)} {interval(row.difference_lo, row.difference_hi, change)}".rstrip()
    return f"{text} over {row.n_shared:.0f} shared prompts" if pd.notna(row.n_shared) else text


def _causes(entries: Sequence[Entry], method: str) -> str:
    """The largest effect of each entry by one method, of those that its own report may name."""
    measured = [entry for entry in entries if len(entry.evidence.effects)]
    if not measured:
        return ""
    if not method:
        own = [f"{listing(list(dict.fromkeys(entry.evidence.effects.method)))} in {entry.label}" for entry in measured]
        return f"Effects are not compared: no method was used in all entries ({'; '.join(own)})."
    parts: dict[str, list[str]] = {}
    for entry in measured:
        over = prompts_of(entry.own_domain)
        found = named_effects(entry.evidence, method)
        if not found:
            parts.setdefault("none", []).append(f"{entry.label} (on {over})")
            continue
        top = found[0]
        size = f"{signed(top.effect)} {interval(top.lo, top.hi, signed)} {top.metric}"
        parts.setdefault(top.component, []).append(f"{entry.label} ({size} on {over})")
    where = "; ".join(f"{name} in {listing(told)}" for name, told in parts.items())
    return f"Largest clear effect of one component, by {method}: {where}."


def _agreement(correlations: pd.DataFrame) -> str:
    rows = correlations[(correlations.domain == OWN_DOMAIN) & correlations.rho.notna()]
    if rows.empty:
        return ""
    several = len(rows[["a", "b"]].drop_duplicates()) > 1
    ends = [rows.loc[rows.rho.idxmin()], rows.loc[rows.rho.idxmax()]] if len(rows) > 1 else [rows.iloc[0]]
    told = [f" ({end.a} and {end.b})" if several else "" for end in ends]
    said = [f"{number(end.rho, 2)} {interval(end.lo, end.hi)}".rstrip() for end in ends]
    chance = interval(rows.null_lo.min(), rows.null_hi.max())
    return (
        f"Do they order components alike, each on the prompts where it changed most? By {rows.method.iloc[0]}, rank "
        f"correlation {' to '.join(map(str.__add__, said, told))}; 95 % of shuffled orders lie in {chance}."
    )


def course(labels: Sequence[str], measures: pd.DataFrame) -> str:
    """Which measures rise or fall at every checkpoint of one training, if more do than in other orders of them."""
    if len(labels) < ORDERED:
        return ""
    whole = measures[measures.domain.isin(["", ALL_DOMAINS])]  # each domain too would count the same prompts again
    values = whole.pivot(index="measure", columns="entry", values="value").reindex(columns=labels).dropna()
    if values.empty:
        return ""
    table = values.to_numpy(np.float64)
    steady, by_chance = _steady(table), _order_p(table)
    what = f"In the order of training {steady.sum()} of {len(values)} measures over all prompts rise or fall every step"
    if by_chance >= 0.05:
        return f"{what}; as many do in {percent(by_chance)} of all orders of these entries, so no trend can be told."
    ends = values[steady].iloc[:, [0, -1]]
    said = [
        f"{MEASURES[name].words} {MEASURES[name].form(first)} → {MEASURES[name].form(last)}"
        for name, first, last in ends.itertuples()
        if name in _COURSE
    ]
    course = f": {listing(said)}" if said else ""
    return f"{what}, as many as in {percent(by_chance)} of all orders of these entries{course}."


def _steady(values: Floats) -> NDArray[np.bool_]:
    """Which rows of (measures, entries) rise, or fall, at every step; rounding is no step."""
    size = np.abs(values).max(axis=1, keepdims=True)
    steps = np.diff(values / np.where(size > 0, size, 1.0), axis=1).round(6)
    return np.asarray((steps > 0).all(axis=1) | (steps < 0).all(axis=1))


def _order_p(values: Floats) -> float:
    """The share of all orders of the entries in which as many measures are steady; of 5,000 where there are more."""
    n = values.shape[1]
    if math.factorial(n) <= _ORDERS:
        orders = [list(order) for order in permutations(range(n))]
    else:
        generator = np.random.default_rng(0)
        orders = [list(range(n)), *(generator.permutation(n).tolist() for _ in range(_ORDERS - 1))]
    given = _steady(values).sum()
    return float(np.mean([_steady(values[:, order]).sum() >= given for order in orders]))
