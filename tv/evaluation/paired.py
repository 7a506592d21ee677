"""Variants compared on the items that they share: means with intervals, paired differences, tests."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tv.errors import InputError, choices
from tv.stats.families import benjamini_hochberg
from tv.stats.means import Floats, mean_interval
from tv.stats.proportions import mcnemar_p, share_change, share_interval

_UNIT = ["task", "metric"]
_ROUNDING = 1e-5  # nats: float32 resolves no less; identical variants differ by less, often in one direction


def summarise(items: pd.DataFrame) -> pd.DataFrame:
    """The mean of every variant, task and metric with its 95 % interval.

    Args:
        items: What `tv.evaluate` and `tv.quality` give. Items of one `cluster` count as one draw; without that column
            each item is its own.

    Returns:
        `variant task metric value lo hi n clusters`, from n items in so many clusters. Wilson's interval for a share,
        that of `tv.stats.means` for any other mean; none below `FEWEST` items or clusters.

    Examples:
        >>> items = tv.evaluate("data/models/medical", "data/tasks/medical_choice.yaml", limit=24)
        >>> summarise(items).round(2).query("metric == 'acc'")[["value", "lo", "hi", "n", "clusters"]].values.tolist()
        [[0.96, 0.76, 0.99, 24.0, 8.0]]
    """
    rows = []
    for (task, metric), table, clusters in tables(items):
        mean, lo, hi = means(table.to_numpy(), clusters)
        for i, variant in enumerate(table):
            where = {"variant": variant, "task": task, "metric": metric}
            answered = table[variant].notna().to_numpy()
            drawn = len({name for name, known in zip(clusters, answered, strict=True) if known})
            estimate = {"value": mean[i], "lo": lo[i], "hi": hi[i], "n": int(answered.sum()), "clusters": drawn}
            rows.append(where | estimate)
    return pd.DataFrame(rows, columns=["variant", *_UNIT, "value", "lo", "hi", "n", "clusters"])


def compare(items: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Every other variant against `reference`, item by item, and how surprising the difference is.

    Args:
        items: As in `summarise`. Differences of an item below 10⁻⁵ are rounding and count as 0.
        reference: The variant to compare with.

    Returns:
        `variant task metric difference lo hi n p test least_p q`. Where every value is 0 or 1, the interval is
        Newcombe's and `test` is "mcnemar": exact, clusters turned whole. Elsewhere it is "mean": p < 0.05 exactly where
        the interval leaves 0 out; neither without enough items, as in `summarise`. `least_p` is the least p that
        McNemar's test can reach with as many items (clusters) as turned. q is Benjamini–Hochberg over all rows of this
        table.

    Raises:
        InputError: `reference` is no variant.

    Examples:
        >>> models = {"base": "data/models/base", "medical": "data/models/medical"}
        >>> items = tv.evaluate(models, "data/tasks/medical_cloze.yaml", limit=4)
        >>> compare(items, "base")[["difference", "p", "least_p"]].values.tolist()
        [[1.0, 0.125, 0.125]]
    """
    if reference not in set(items.variant):
        raise InputError(f"no variant {reference!r} to compare with{choices(reference, _variants(items))}")
    rows = []
    for (task, metric), table, clusters in tables(items):
        for variant in table.columns.drop(reference):
            found = difference(table[reference], table[variant], clusters)
            rows.append({"variant": variant, "task": task, "metric": metric} | found._asdict())
    frame = pd.DataFrame(rows, columns=["variant", *_UNIT, *Difference._fields])
    return frame.assign(q=benjamini_hochberg(frame.p))


class Difference(NamedTuple):
    """A mean difference on the same items, its 95 % interval and p of no difference; see `compare`."""

    difference: float
    lo: float
    hi: float
    n: int
    p: float
    test: str
    least_p: float  # NaN for means


def difference(before: ArrayLike, after: ArrayLike, clusters: Sequence[str]) -> Difference:
    """after − before, item by item: of shares where all values of both are 0 or 1."""
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    gap = second - first
    gap = np.where(np.abs(gap) < _ROUNDING, 0.0, gap)
    n = int((~np.isnan(gap)).sum())
    if n and _binary(np.stack([first, second])):
        p = mcnemar_p(first, second, clusters)
        return Difference(*share_change(first, second, clusters), n, p, "mcnemar", _least_p(gap, clusters))
    found = mean_interval(gap, clusters)
    return Difference(float(found.mean), float(found.lo), float(found.hi), n, float(found.p), "mean", np.nan)


def means(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """(mean, lo, hi) of every column of (items, columns): of shares where all values are 0 or 1."""
    if not _binary(values):
        found = mean_interval(values, clusters)
        return found.mean, found.lo, found.hi
    each = np.array([share_interval(column, clusters) for column in values.T]).reshape(-1, 3)
    return each[:, 0], each[:, 1], each[:, 2]


def tables(items: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame, list[str]]]:
    """(task, metric), a row per item and a column per variant in order of appearance, and the cluster of each row."""
    order = _variants(items)
    named = items if "cluster" in items else items.assign(cluster=items.item_id)
    for unit, rows in named.groupby(_UNIT, sort=False):
        if rows.duplicated(["variant", "item_id"]).any():
            raise InputError(f"task {unit[0]}: an item id stands twice; ids are unique in a task")
        table = rows.pivot(index="item_id", columns="variant", values="value").reindex(columns=order)
        cluster = rows.drop_duplicates("item_id").set_index("item_id").cluster
        yield unit, table, cluster.reindex(table.index).astype(str).tolist()


def _binary(values: Floats) -> bool:
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def _least_p(gap: Floats, clusters: Sequence[str]) -> float:
    """Where all that turned had turned one way; 1 where nothing did."""
    turned = int((pd.Series(gap).groupby(list(clusters)).sum() != 0).sum())
    return float(min(1.0, 2 * 0.5**turned))


def _variants(items: pd.DataFrame) -> list[Hashable]:
    return list(dict.fromkeys(items.variant))
