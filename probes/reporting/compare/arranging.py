"""How entries are shown side by side: one map each on one scale, by module, and domain by domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from probes.reporting import figures
from probes.reporting.compare import charts
from probes.reporting.compare.comparison import Comparison
from probes.reporting.figures import Plot
from probes.reporting.panel import Figure
from probes.reporting.words import prompts_of
from tv.architecture.anatomy import MODULES

#: The note of maps side by side.
SCALE = "One map per entry, one scale for all of them."
#: The axis of a value that is never negative, and of a share.
FROM_ZERO = {"rangemode": "tozero"}
SHARE = {"tickformat": ".0%", "rangemode": "tozero"}


def side_by_side(
    compared: Comparison,
    rows: pd.DataFrame,
    value: str,
    column: str,
    order: Sequence[str],
    *,
    ratio: bool = False,
    **look: Any,
) -> list[Plot]:
    """One layer × `column` map per entry, all of them on one scale."""
    known = rows[value].astype(float).dropna()
    reach = figures.reach(known) if ratio else float(known.abs().max()) if len(known) else 0.0
    by_entry = dict(list(rows.groupby("entry")))
    return [
        figures.heatmap(
            by_entry[entry.label],
            value,
            column,
            order,
            entry.evidence.n_layers,
            ratio=ratio,
            reach=reach or None,
            **look,
        )
        if entry.label in by_entry
        else charts.nothing()
        for entry in compared.entries
    ]


def as_figures(name: str, compared: Comparison, maps: Sequence[Sequence[Plot]]) -> list[Figure]:
    """One figure per entry, from the maps of every choice."""
    return [Figure(f"{name}-{i}", label, [cut[i] for cut in maps]) for i, label in enumerate(compared.labels)]


def by_module(
    compared: Comparison, rows: pd.DataFrame, value: str, title: str, level: str, axis: dict[str, Any]
) -> Plot:
    """The mean over layers of `value` by module, one dot per entry, beside the mean of the column `level`."""
    order = [name for name in MODULES if name in set(rows.module)]
    means = rows.groupby(["entry", "module"], sort=False)[value].mean().reset_index()
    means = means.sort_values("module", key=lambda names: names.map(order.index), kind="stable")
    chance = rows.groupby("module")[level].mean().to_dict() if level else None
    return charts.by_name(means, value, "module", compared.labels, title=title, level=chance, axis=axis)


def by_domain(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The mean over domains, then the rows of each, by the name of its prompts."""
    values = [name for name in rows.select_dtypes("number") if name != "layer"]
    means = rows.groupby(["entry", "layer"], sort=False)[values].mean().reset_index()
    domains = {prompts_of(str(domain)): in_domain for domain, in_domain in rows.groupby("domain", sort=False)}
    return {"mean over domains": means, **domains} if len(domains) > 1 else domains


def block_modules(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a block's matrices."""
    return rows[rows.module.isin(MODULES)]
