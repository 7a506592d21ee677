"""How behaviour moved and what got worse, in sentences: only what the tests, the floor and the sizes allow."""

from __future__ import annotations

from typing import Any

import pandas as pd

from probes.reporting.words import METRICS, change_form, interval, listing, metric_name, too_few, value_form
from tv.stats.means import FEW_CLUSTERS, FEWEST

#: What may be said of a change that is not worse, and how a count of them is put.
_OTHERS = {
    "better": "got better",
    "negligible": "changed by less than what matters",
    "within noise": "stayed within rounding noise",
    "cannot tell": "cannot be decided from these prompts",
}


def behaviour_sentences(behaviour: pd.DataFrame) -> list[str]:
    """How behaviour moved, one sentence per domain."""
    graded = behaviour[behaviour.base.notna()]
    if graded.empty:
        return ["Not measured: no prompt of this run has a target, or behaviour was not requested."]
    return [
        f"{domain} ({_size(rows)}): {'; '.join(_moved(row) for row in leading(rows).to_dict('records'))}."
        for domain, rows in graded.groupby("domain", sort=False)
    ]


def worse_sentences(behaviour: pd.DataFrame) -> list[str]:
    """What got worse, one sentence per domain, or that nothing measured did; and how many of the others did what."""
    judged = said_of_each(behaviour)
    if judged.empty:
        return []
    worse = judged[judged.said == "worse"]
    counts = judged.said.value_counts()
    others = listing([f"{counts[said]} {words}" for said, words in _OTHERS.items() if said in counts])
    if worse.empty:
        none = f"None of the {len(judged)} measured domain × metric pairs got worse"
        return [f"{none}: {others}. This holds for these prompts only."]
    named = []
    for domain, rows in worse.groupby("domain", sort=False):
        parts = [f"{metric_name(row['metric'])} {_change(row)}" for row in rows.to_dict("records")]
        named.append(f"{domain}: {listing(parts)}.")
    return [*named, f"Of the {len(judged)} measured domain × metric pairs, {others}."] if others else named


def few_sentences(behaviour: pd.DataFrame) -> list[str]:
    """Which domains have too few prompts or clusters for an interval, and which have few."""
    units = behaviour[behaviour.base.notna()].groupby("domain", sort=False).units.max()
    none, few = units[units < FEWEST], units[(units >= FEWEST) & (units < FEW_CLUSTERS)]
    sentences = []
    if len(none):
        text = too_few(none.index, none)
        sentences.append(f"{text[0].upper()}{text[1:]}.")
    if len(few):
        named = listing([f"{domain} ({n})" for domain, n in few.items()])
        sentences.append(f"Fewer than {FEW_CLUSTERS} prompts or clusters make rough intervals: {named}.")
    return sentences


def said_of_each(behaviour: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics that are better or worse, "changed" split into "better" and "worse"."""
    up = behaviour.metric.map({name: better for name, (_, _, better) in METRICS.items()})
    judged = behaviour[up.notna() & (behaviour.said != "")]
    better = (judged.change > 0) == up[judged.index]
    turned = better.map({True: "better", False: "worse"})
    return judged.assign(said=judged.said.where(judged.said != "changed", turned))


def leading(rows: pd.DataFrame) -> pd.DataFrame:
    """The metrics of one domain of which something may be said, those last that stay at 0 or at 1."""
    told = rows[rows.said != ""]
    stuck = (told.base == told.tuned) & told.base.isin([0, 1])
    return pd.concat([told[~stuck], told[stuck]])


def _size(rows: pd.DataFrame) -> str:
    return size_of(int(rows.n.max()), int(rows.units.max()))


def size_of(n: int, units: int) -> str:
    """How many prompts, and in how many clusters where these are fewer."""
    return f"n = {n}" if n == units else f"n = {n} in {units} clusters"


def _moved(row: dict[Any, Any]) -> str:
    form = value_form(row["metric"])
    return f"{metric_name(row['metric'])} {form(row['base'])} → {form(row['tuned'])} ({_change(row)})"


def _change(row: dict[Any, Any]) -> str:
    """The change with its interval, turned answers, and what may be said of it where it is no clear change."""
    form = change_form(row["metric"])
    text = f"{form(row['change'])} {interval(row['change_lo'], row['change_hi'], form)}".rstrip()
    turned = [f"{row['gained']:.0f} gained, {row['lost']:.0f} lost"] if pd.notna(row["gained"]) else []
    unsure = [row["said"]] if row["said"] in ("negligible", "within noise", "cannot tell") else []
    if row["said"] == "cannot tell" and (row["change_lo"] > 0 or row["change_hi"] < 0):  # why, although 0 is outside
        unsure = [f"cannot tell{', corrected for the number of changes' if row['p'] < 0.05 else ' by the exact test'}"]
    return "; ".join([text, *turned, *unsure])
