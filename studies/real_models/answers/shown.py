"""How tables are shown: what is of one kind, ranges and intervals, Markdown."""

from __future__ import annotations

import pandas as pd

from studies.real_models.reading import ONE_STEP, RANDOM
from tv.stats.means import mean_interval

Tables = dict[str, pd.DataFrame]
#: The types of matrices in a block.
MODULES = ("q", "k", "v", "o", "gate", "up", "down")


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def kinds(table: pd.DataFrame) -> pd.DataFrame:
    """With the column `kind`: full, lora, or the null that it is."""
    kind = table.tuned.where(table.tuned.isin([RANDOM, ONE_STEP]), table.tuned.str.rpartition("-")[2])
    return table.assign(kind=kind)


def own_domain(table: pd.DataFrame) -> pd.Series:
    """Whether the texts of a row are of the domain that its fine-tune was tuned on."""
    return table.tuned.str.rpartition("-")[0] == table.domain


def first_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each task's first metric."""
    return table[table.metric == table.groupby("task").metric.transform("first")]


def spread(values: pd.Series, digits: int = 3) -> str:
    """The median, and the range where there are several."""
    middle = signed(values.median(), digits)
    return (
        middle if len(values) == 1 else f"{middle} ({signed(values.min(), digits)} to {signed(values.max(), digits)})"
    )


def interval(mean: float, lo: float, hi: float, digits: int = 3) -> str:
    """A mean with its interval; without one where there was none."""
    ends = "" if pd.isna(lo) or pd.isna(hi) else f" [{signed(lo, digits)}, {signed(hi, digits)}]"
    return f"{signed(mean, digits)}{ends}"


def over_texts(values: pd.Series, clusters: pd.Series, digits: int = 3) -> str:
    """The mean of what was measured on texts, with its interval over their clusters."""
    found = mean_interval(values, clusters.astype(str).tolist())
    return interval(float(found.mean), float(found.lo), float(found.hi), digits)


def signed(value: float, digits: int = 3) -> str:
    """With a minus of typography, and no minus before a zero; a dash for what is not known."""
    if pd.isna(value):
        return "–"
    return f"{value + 0.0:.{digits}f}".replace("-", "−") if round(value, digits) else f"{0:.{digits}f}"
