"""Variants on the items that they share: means, paired differences, and the exact test against its definition."""

import math

import numpy as np
import pandas as pd
import pytest

from tv.errors import InputError
from tv.evaluation.paired import compare, summarise
from tv.stats.means import mean_interval


def items(
    values: dict[str, list[float]], *, task: str = "t", metric: str = "acc", clusters: list[str] | None = None
) -> pd.DataFrame:
    rows = [
        {"variant": variant, "task": task, "metric": metric, "item_id": str(i), "value": value}
        | ({"cluster": clusters[i]} if clusters else {})
        for variant, own in values.items()
        for i, value in enumerate(own)
    ]
    return pd.DataFrame(rows)


def test_means_have_intervals_that_hold_them() -> None:
    rng = np.random.default_rng(0)
    found = summarise(items({"a": list(rng.integers(0, 2, 80) * 1.0), "b": [1.0] * 80})).set_index("variant")
    assert found.n.tolist() == found.clusters.tolist() == [80, 80]
    assert 0 < found.lo["a"] < found.value["a"] < found.hi["a"] < 1
    assert (found.value["b"], found.hi["b"]) == (1.0, 1.0) and 0.93 < found.lo["b"] < 0.97
    width = found.hi["a"] - found.lo["a"]
    assert width == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(80), rel=0.2)


def test_losses_have_the_interval_of_a_mean_and_p_says_the_same() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(3, 1, 24)
    for shift in (0.0, 0.5):
        table = items({"base": list(base), "up": list(base + rng.normal(shift, 0.6, 24))}, metric="nll")
        found, own = compare(table, "base").iloc[0], mean_interval(table.value[24:].to_numpy() - base)
        assert (found.difference, found.lo, found.hi, found.p) == pytest.approx(tuple(map(float, own[:4])))
        assert found.test == "mean" and np.isnan(found.least_p) and (found.p < 0.05) == (shift > 0)


def test_four_lost_answers_are_no_loss() -> None:
    """48 items of which 4 are lost: −8.3 %, and McNemar says .125, the least that four can say."""
    found = compare(items({"base": [1.0] * 48, "tuned": [0.0] * 4 + [1.0] * 44}), "base").iloc[0]
    assert found.difference == pytest.approx(-4 / 48) and found.test == "mcnemar"
    assert (found.p, found.least_p, found.q) == (0.125, 0.125, 0.125)
    assert -0.21 < found.lo < found.difference < found.hi
    several = compare(items({"base": [1.0] * 48, "tuned": [0.0] * 5 + [1.0] * 43}), "base").iloc[0]
    assert several.least_p == 2 * 0.5**5 > 0.05


def test_an_interval_never_collapses() -> None:
    for n in (8, 16, 48):
        found = compare(items({"base": [1.0] * n, "tuned": [1.0] * n}), "base").iloc[0]
        assert found.lo < -1 / n < 0 < 1 / n < found.hi and found.p == found.least_p == 1
    few = items({"base": [1.0] * 7, "tuned": [0.0] * 7})
    assert np.isnan(compare(few, "base")[["lo", "hi"]]).all(axis=None) and compare(few, "base").p[0] == 2 * 0.5**7
    assert np.isnan(summarise(few)[["lo", "hi"]]).all(axis=None)
    losses = items({"base": list(np.arange(7.0)), "tuned": list(np.arange(7.0) * 2)}, metric="nll")
    assert np.isnan(compare(losses, "base")[["lo", "hi", "p", "q"]]).all(axis=None)


def test_items_of_one_template_are_one_draw() -> None:
    rng = np.random.default_rng(2)
    template = [str(i) for i in np.repeat(np.arange(10), 6)]
    before = np.repeat(rng.normal(4, 1, 10), 6)
    after = before + np.repeat(rng.normal(0.2, 1, 10), 6)
    losses = {"base": list(before), "tuned": list(after)}
    alone, together = (compare(items(losses, metric="nll", clusters=c), "base").iloc[0] for c in (None, template))
    assert together.difference == pytest.approx(alone.difference)
    assert together.hi - together.lo > 2 * (alone.hi - alone.lo)
    means = summarise(items(losses, metric="nll", clusters=template))
    assert means.n.tolist() == [60, 60] and means.clusters.tolist() == [10, 10]
    lost = {"base": [1.0] * 60, "tuned": [0.0] * 12 + [1.0] * 48}  # twelve answers in two templates
    found = compare(items(lost, clusters=template), "base").iloc[0]
    assert found.p == found.least_p == 0.5 and compare(items(lost), "base").p[0] < 0.001
    four = compare(items(losses, metric="nll", clusters=[str(int(c) % 4) for c in template]), "base").iloc[0]
    assert np.isnan([four.lo, four.hi, four.p]).all()


def test_differences_are_taken_item_by_item() -> None:
    hard = np.linspace(-50, 50, 40)  # items differ far more than variants do
    step = np.random.default_rng(3).normal(1, 0.1, 40)
    table = pd.concat(
        [
            items({"base": list(hard), "up": list(hard + step)}, metric="nll"),
            items({"base": [0.0] * 30 + [1.0] * 10, "up": [1.0] * 40}),
        ]
    )
    found = compare(table, "base").set_index("metric")
    assert found.difference["nll"] == pytest.approx(1, abs=0.05) and found.lo["nll"] > 0.9
    assert found.test.to_dict() == {"nll": "mean", "acc": "mcnemar"}
    assert found.difference["acc"] == 0.75 and found.p["acc"] == pytest.approx(2 / 2**30)
    assert (found.q >= found.p).all() and (found.variant == "up").all()


def test_rounding_is_no_difference() -> None:
    other = list(1.0 + np.linspace(1e-3, 2e-3, 30))
    table = items({"base": [1.0] * 30, "same": [1.0 + 1e-7] * 30, "other": other}, metric="nll")
    found = compare(table, "base").set_index("variant")
    assert found.p["same"] == 1 and found.difference["same"] == 0 and found.p["other"] < 1e-5


def test_items_are_matched_by_their_ids_and_not_by_their_order() -> None:
    table = items({"base": [0.0, 1.0, 0.0, 1.0], "up": [0.0, 1.0, 0.0, 1.0]}).sample(frac=1, random_state=1)
    found = compare(table, "base")
    assert found.difference.tolist() == [0.0] and found.p.tolist() == [1.0]
    fewer = table[~((table.variant == "up") & (table.item_id == "1"))]
    assert compare(fewer, "base").n.tolist() == [3]
    apart = table.assign(item_id=table.variant + table.item_id)
    assert compare(apart, "base")[["difference", "p", "least_p", "q"]].isna().to_numpy().all()


def test_bad_input_is_named() -> None:
    table = items({"base": [0.0], "up": [1.0]})
    with pytest.raises(InputError, match=r"no variant 'tuned'.*base, up"):
        compare(table, "tuned")
    with pytest.raises(InputError, match="task t: an item id stands twice"):
        summarise(pd.concat([table, table]))
