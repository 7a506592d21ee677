"""Which components carry the change, in sentences."""

from __future__ import annotations

import pandas as pd
from scipy.stats import spearmanr

from probes.attribution.effects import focus
from probes.attribution.units import component_name
from probes.reporting.behaviour import REPEATS
from probes.reporting.words import effect_metric_name, interval, listing, number, prompts_of, q_value, signed
from probes.store.schemas import ALL_DOMAINS

#: Components named per method.
NAMED = 3
#: A q value below this counts as significant.
FOUND = 0.05


def causes_sentences(effects: pd.DataFrame, behaviour: pd.DataFrame) -> list[str]:
    """The leading components of each exact method where effects are largest, how they add up, and spill-over."""
    if effects.empty:
        return []
    metric, domain = str(effects.metric.iloc[0]), shown_domain(effects, behaviour)
    shown = effects[effects.domain == domain]
    sentences = [
        f"Exact effects on the {effect_metric_name(metric)} over {_over(shown)}, where it changed most; "
        "mean [95 % interval]."
    ]
    sentences += [_leading(str(method), family) for method, family in shown.groupby("method", sort=False)]
    enough, needed = (int((shown[shown.method == method].q < FOUND).sum()) for method in ("graft", "revert"))
    if needed and not enough and {"graft", "revert"} <= set(shown.method):
        sentences.append("No component alone shows a clear effect (graft); taking one away does (revert).")
    if (total := total_change(behaviour, metric, domain)) is not None:
        sums = shown.groupby("method", sort=False).effect.sum()
        added = listing([f"{signed(value)} by {method}" for method, value in sums.items()])
        sentences.append(
            f"The whole change there is {signed(total)}; single effects add up to {added}: where the two differ, "
            "components work together."
        )
    if (agreement := graft_revert_agreement(shown)) is not None:
        rho, size = agreement
        sentences.append(f"Graft and revert order the {size} components alike with rank correlation {number(rho, 2)}.")
    others = effects[(effects.domain != domain) & (effects.domain != ALL_DOMAINS) & (effects.q < FOUND)]
    if domain != ALL_DOMAINS and effects.domain.nunique() > 2:
        sentences.append(_elsewhere(others))
    return sentences


def shown_domain(effects: pd.DataFrame, behaviour: pd.DataFrame) -> str:
    """The domain whose metric changed most; where no change was measured, that of the largest effect."""
    metric = str(effects.metric.iloc[0])
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


def _over(rows: pd.DataFrame) -> str:
    domain, n = str(rows.domain.iloc[0]), rows.n.iloc[0]
    prompts = prompts_of(domain)
    return f"{prompts} (n = {n:.0f})" if pd.notna(n) else prompts


def _elsewhere(others: pd.DataFrame) -> str:
    if others.empty:
        return f"On the other domains no component has an effect with q < {FOUND}."
    parts = []
    for _, rows in others.groupby("domain", sort=False):
        top = rows.loc[rows.effect.abs().idxmax()]
        parts.append(f"{_over(rows)}: {_effect(top)} ({top.method})")
    return "Largest effects on the other domains, " + "; ".join(parts) + "."


def _leading(method: str, family: pd.DataFrame) -> str:
    ranked = family.loc[family.effect.abs().sort_values(ascending=False).index]
    significant = int((ranked.q < FOUND).sum())
    if not significant:
        top = _effect(ranked.iloc[0])
        return f"{method.capitalize()}: none of {len(ranked)} components has q < {FOUND}; the largest is {top}."
    named = "; ".join(_effect(row) for _, row in ranked[ranked.q < FOUND].head(NAMED).iterrows())
    return f"{method.capitalize()}: {named}. {significant} of {len(ranked)} components have q < {FOUND}."


def _effect(row: pd.Series) -> str:
    name = component_name(row.layer, row.component)
    return f"{name} {signed(row.effect)} {interval(row.lo, row.hi, signed)}, {q_value(row.q)}"


def total_change(behaviour: pd.DataFrame, metric: str, domain: str) -> float | None:
    """The mean change of a metric over all prompts of a domain (or of all) that have it."""
    rows = behaviour[(behaviour.metric == metric) & behaviour.change.notna()]
    rows = rows if domain == ALL_DOMAINS else rows[rows.domain == domain]
    return float((rows.change * rows.n).sum() / rows.n.sum()) if len(rows) else None


def graft_revert_agreement(effects: pd.DataFrame) -> tuple[float, int] | None:
    """(Spearman's rho, components) between the two methods' effects; None where one is missing or constant."""
    wide = effects.pivot_table(index=["layer", "component"], columns="method", values="effect").dropna()
    if not {"graft", "revert"} <= set(wide.columns) or len(wide) < 4 or wide.nunique().min() < 2:
        return None
    return float(spearmanr(wide.graft, wide.revert).statistic), len(wide)
