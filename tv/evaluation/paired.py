"""Variants compared on the items that they share: means with intervals, paired differences, tests."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from tv.errors import InputError
from tv.stats.families import benjamini_hochberg
from tv.stats.resampling import bootstrap_mean, wilcoxon_p

_UNIT = ["task", "metric"]
_ROUNDING = 1e-5  # nats: float32 resolves no less; identical variants differ by less, often in one direction


def summarise(items: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The mean of every variant, task and metric with its 95 % bootstrap interval over items.

    Columns `variant task metric value lo hi n`. The same resamples of items serve all variants.
    """
    rows = []
    for (task, metric), table in tables(items):
        mean, lo, hi = bootstrap_mean(table.to_numpy(), draws, seed)
        counts = table.notna().sum()
        for i, variant in enumerate(table):
            where = {"variant": variant, "task": task, "metric": metric}
            rows.append(where | {"value": mean[i], "lo": lo[i], "hi": hi[i], "n": int(counts[variant])})
    return pd.DataFrame(rows, columns=["variant", *_UNIT, "value", "lo", "hi", "n"])


def compare(items: pd.DataFrame, reference: str, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Every other variant against `reference`, item by item: `difference lo hi n`, and how surprising it is.

    `p` is the exact McNemar test's where every value is 0 or 1, else the signed-rank test's (`test` says which); `q` is
    Benjamini–Hochberg over all rows of this table. Differences of an item below 10⁻⁵ are rounding and count as 0.
    Raises InputError where `reference` is no variant.
    """
    if reference not in set(items.variant):
        raise InputError(f"no variant {reference!r} to compare with; there are {', '.join(map(str, _variants(items)))}")
    rows = []
    for (task, metric), table in tables(items):
        baseline = table[reference]
        binary = bool(table.isin([0.0, 1.0]).where(table.notna(), True).to_numpy().all())
        for variant in table.columns.drop(reference):
            gap = (table[variant] - baseline).to_numpy()
            gap = np.where(np.abs(gap) < _ROUNDING, 0.0, gap)
            n = int((~np.isnan(gap)).sum())
            mean, lo, hi = bootstrap_mean(gap, draws, seed)
            p = mcnemar_p(baseline, table[variant]) if binary and n else float(wilcoxon_p(gap))
            where = {"variant": variant, "task": task, "metric": metric}
            estimate = {"difference": float(mean), "lo": float(lo), "hi": float(hi), "n": n, "p": p}
            rows.append(where | estimate | {"test": "mcnemar" if binary else "wilcoxon"})
    frame = pd.DataFrame(rows, columns=["variant", *_UNIT, "difference", "lo", "hi", "n", "p", "test"])
    return frame.assign(q=benjamini_hochberg(frame.p))


def mcnemar_p(first: ArrayLike, second: ArrayLike) -> float:
    """Exact two-sided p of McNemar's test (1947) on two columns of 0 and 1 over the same items: are they right alike?

    Only items on which the two differ count, by a fair coin. 1 where there is none; NaN pairs are left out.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    known = ~(np.isnan(a) | np.isnan(b))
    gained, lost = int((b > a)[known].sum()), int((b < a)[known].sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _variants(items: pd.DataFrame) -> list[Hashable]:
    return list(dict.fromkeys(items.variant))


def tables(items: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    """(task, metric) → a row per item, a column per variant, in order of appearance."""
    order = _variants(items)
    by_unit = []
    for unit, rows in items.groupby(_UNIT, sort=False):
        if rows.duplicated(["variant", "item_id"]).any():
            raise InputError(f"task {unit[0]}: an item id stands twice; ids are unique in a task")
        by_unit.append((unit, rows.pivot(index="item_id", columns="variant", values="value").reindex(columns=order)))
    return by_unit
