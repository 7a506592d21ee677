"""The change due to a module's own weights, and whether it is in new directions: in sentences."""

from __future__ import annotations

import pandas as pd

from probes.reporting.evidence import TERMS
from probes.reporting.words import listing, percent

#: Shares of T's and of W's writes in new directions that are as close as this are called the same.
ALIKE = 0.02


def ledger_sentences(ledger: pd.DataFrame) -> list[str]:
    """Of the modules of blocks that moved: what their change is due to, where terms cancel, and what is new in it."""
    rows = ledger[ledger.new_share_10.notna()] if len(ledger) else ledger
    if rows.empty:
        return []
    means = rows.groupby("module", sort=False)[[*TERMS, *_NEW, "cancelled"]].mean()
    return [*_shares(means), *_cancelled(means), *_new(means)]


_NEW = ("new_share_10", "new_share_10_of_w")


def _shares(means: pd.DataFrame) -> list[str]:
    known = means[list(TERMS)].dropna()
    if known.empty:
        return []
    direct, whole = known.direct.sort_values(ascending=False), known.mean()
    ends = f"most in {direct.index[0]} ({percent(direct.iloc[0])}), least in {direct.index[-1]}"
    against = "" if direct.iloc[-1] >= 0 else ", where they pushed against it"
    return [
        f"{percent(direct.mean())} of the change of a module's output is due to the module's own weights, on average: "
        f"{ends} ({percent(direct.iloc[-1])}{against}). {percent(whole.inherited)} is inherited through its input, and "
        f"{percent(whole.interaction)} is the interaction of both. Only modules of blocks that moved count; shares are "
        "projections on the change."
    ]


def _cancelled(means: pd.DataFrame) -> list[str]:
    """Modules at most places of which the terms undo each other."""
    rows = means[means.cancelled > 0.5]
    if rows.empty:
        return []
    told = listing([f"{name} (at {percent(row.cancelled)} of places)" for name, row in rows.iterrows()])
    return [
        f"In {told} the terms cancel: the inherited change undoes what the module's own weights did, so no shares are "
        "given."
    ]


def _new(means: pd.DataFrame) -> list[str]:
    rows = means[list(_NEW)].sort_values("new_share_10", kind="stable")
    told = []
    for name, row in rows.iterrows():
        of_w = "" if pd.isna(row.new_share_10_of_w) else f" (W x: {percent(row.new_share_10_of_w)})"
        told.append(f"{name} {percent(row.new_share_10)}{of_w}")
    sentence = (
        f"Share of this direct change T x outside the leading 10 % of pretrained output directions: {', '.join(told)}; "
        "a T with no preferred direction has 90 %"
    )
    above = rows.new_share_10 - rows.new_share_10_of_w
    if above.isna().all():
        return [f"{sentence}."]
    newer, older = (list(map(str, rows.index[at])) for at in (above > ALIKE, above < -ALIKE))
    parts = [f"more than W x itself on the same inputs in {listing(newer)}"] if newer else []
    parts += [f"less in {listing(older)}" if newer else f"less than W x itself in {listing(older)}"] if older else []
    return [f"{sentence}. That is {', '.join(parts) if parts else 'as much as W x itself writes there'}."]
