"""What several entries say side by side, in sentences with their numbers. Pure: entries and tables in, strings out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from probes.attribution.units import component_name
from probes.reporting.compare.entries import ORDERED, Entry, laid, shared_prompts
from probes.reporting.compare.measures import BEHAVIOUR, MEASURES, OWN_DOMAIN
from probes.reporting.verdict import Headline
from probes.reporting.words import effect_metric_name, interval, listing, metric_name, number, signed
from probes.store.schemas import ALL_DOMAINS
from tv.architecture.anatomy import MODULES
from tv.stats.means import FEWEST

#: The behaviour metric of the verdict: the first of these that was measured.
_SPOKEN = ("exact_match", "logit_diff", "target_nll", "kl")
#: Measures whose course over the order the verdict describes.
_COURSE = [("relative_norm", ""), ("flip_rate", ALL_DOMAINS), ("relative_change", ALL_DOMAINS)]


def comparison_verdict(
    entries: Sequence[Entry], measures: pd.DataFrame, correlations: pd.DataFrame, cautions: Sequence[str]
) -> list[Headline]:
    """What differs and by how much, most important first; what was not measured is left out.

    `measures` are `measure_rows`, `correlations` are `effect_correlations`.
    """
    sentences = [
        (_who(entries, cautions), "entries"),
        (_behaviour(entries, measures), "behaviour-by-domain"),
        (_weights(entries, measures), "weights-by-module"),
        (_furthest(measures, "flip_rate", entries[0].label), "flips"),
        (_furthest(measures, "relative_change", entries[0].label), "change-attn"),
        (_causes(entries), "effects"),
        (_agreement(correlations), "agreement-table"),
        (_course(entries, measures), "order"),
    ]
    return [Headline(text, place) for text, place in sentences if text]


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
    apart = rows[rows.difference.notna() & (rows.n_shared >= FEWEST)]
    if apart.empty:
        return ""
    clear = apart[(apart.difference_lo > 0) | (apart.difference_hi < 0)]
    counts = (
        f"{len(clear)} of {len(apart)} domain × metric values differ from {entries[0].label}'s beyond their intervals"
    )
    spoken = next(name for name in _SPOKEN if (apart.measure == name).any())
    candidates = apart[apart.measure == spoken]
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
    wide = wide.dropna()
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


def _furthest(measures: pd.DataFrame, name: str, first: str) -> str:
    """The entry that is furthest from the first in a measure, over all prompts."""
    rows = measures[(measures.measure == name) & measures.domain.isin(["", ALL_DOMAINS])]
    apart, reference = rows[rows.difference.notna() & (rows.entry != first)], rows[rows.entry == first]
    if apart.empty or reference.empty:
        return ""
    top, form = apart.loc[apart.difference.abs().idxmax()], MEASURES[name].form
    words, least = MEASURES[name].words, "" if len(apart) == 1 else "furthest from it "
    return (
        f"{words[0].upper()}{words[1:]}: {form(reference.value.iloc[0])} in {first}, {least}{form(top.value)} in "
        f"{top.entry} ({_apart(top)})."
    )


def _apart(row: pd.Series) -> str:
    change = MEASURES[row.measure].change
    text = f"{change(row.difference)} {interval(row.difference_lo, row.difference_hi, change)}".rstrip()
    return f"{text} over {row.n_shared:.0f} shared prompts" if pd.notna(row.n_shared) else text


def _causes(entries: Sequence[Entry]) -> str:
    """The largest effect of each entry, by the last method that it has (revert, where it was requested)."""
    parts: dict[str, list[str]] = {}
    methods: dict[str, None] = {}
    for entry in entries:
        effects = entry.evidence.effects
        if len(effects):
            domain, method = entry.own_domain, str(effects.method.iloc[-1])
            family = effects[(effects.domain == domain) & (effects.method == method)]
            top = family.loc[family.effect.abs().idxmax()]
            size = f"{signed(top.effect)} {interval(top.lo, top.hi, signed)} {effect_metric_name(str(top.metric))}"
            name = component_name(top.layer, top.component)
            parts.setdefault(name, []).append(f"{entry.label} ({size} on {domain} prompts)")
            methods.setdefault(method)
    if not parts:
        return ""
    where = "; ".join(f"{name} in {listing(told)}" for name, told in parts.items())
    return f"The component of the largest single effect by {listing(list(methods))}: {where}."


def _agreement(correlations: pd.DataFrame) -> str:
    rows = correlations[(correlations.domain == OWN_DOMAIN) & correlations.rho.notna()]
    if rows.empty:
        return ""
    parts, several = [], len(rows[["a", "b"]].drop_duplicates()) > 1
    for method, pairs in rows.groupby("method", sort=False):
        ends = [pairs.loc[pairs.rho.idxmin()], pairs.loc[pairs.rho.idxmax()]] if len(pairs) > 1 else [pairs.iloc[0]]
        told = [f" ({end.a} and {end.b})" if several else "" for end in ends]
        said = [f"{number(end.rho, 2)} {interval(end.lo, end.hi)}" for end in ends]
        parts.append(f"{' to '.join(map(str.__add__, said, told))} by {method}")
    chance = interval(rows.null_lo.min(), rows.null_hi.max())
    return (
        f"Do they order components alike, each on the prompts where it changed most? Rank correlation "
        f"{listing(parts)}; 95 % of shuffled orders lie in {chance}."
    )


def _course(entries: Sequence[Entry], measures: pd.DataFrame) -> str:
    """Which measures rise or fall at every step of the order given, and how often that happens by chance."""
    if len(entries) < ORDERED:
        return ""
    labels = [entry.label for entry in entries]
    said, steady, known = [], 0, 0
    for (name, domain), rows in measures.groupby(["measure", "domain"], sort=False):
        values = rows.set_index("entry").value.reindex(labels).to_numpy(float)
        if np.isnan(values).any():
            continue
        whole = domain in ("", ALL_DOMAINS)  # counting each domain too would count the same prompts again
        steps = np.diff(values / (np.abs(values).max() or 1.0)).round(6)  # rounding is no step
        known += whole
        if (steps > 0).all() or (steps < 0).all():
            steady += whole
            if (name, domain) in _COURSE or (name == "exact_match" and not whole):
                form, where = MEASURES[name].form, "" if whole else f" on {domain} prompts"
                ends = f"{form(rows.value.iloc[0])} → {form(rows.value.iloc[-1])}"
                said.append(f"{MEASURES[name].words}{where} {ends}")
    if not said:
        return ""
    return (
        f"In the order given, {steady} of {known} measures, over all prompts, rise or fall at every step (in a random "
        f"order each would with probability 1 in {math.factorial(len(entries)) // 2:,}). Steadily went {listing(said)}."
    )
