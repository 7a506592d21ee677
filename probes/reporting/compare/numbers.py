"""All numbers of a comparison as one table of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from probes.reporting.compare.measures import MEASURES
from probes.reporting.panel import Table
from probes.reporting.words import interval, prompts_of


def measures_table(measures: pd.DataFrame) -> Table:
    """Every value, and its difference from the first entry."""
    order = {name: i for i, name in enumerate(MEASURES)}
    ranked = measures.assign(rank=measures.measure.map(order)).sort_values(["rank", "domain"], kind="stable")
    rows = [_values(row) for row in ranked.to_dict("records")]
    columns = ("measure", "prompts", "entry", "value", "interval", "n", "from the first", "interval", "shared n")
    return Table("numbers-table", "", columns, rows)


def _values(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """A row of the table of all numbers, as text."""
    measure, n = MEASURES[row["measure"]], [f"{row[name]:.0f}".replace("nan", "") for name in ("n", "n_shared")]
    value = (measure.form(row["value"]), interval(row["lo"], row["hi"], measure.form), n[0])
    ends = interval(row["difference_lo"], row["difference_hi"], measure.change)
    apart = (measure.change(row["difference"]).replace("–", ""), ends, n[1])
    return (measure.words, prompts_of(row["domain"]) if n[0] else "", row["entry"], *value, *apart)
