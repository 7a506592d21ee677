"""Variants on the items that they share: means, paired differences, and the exact test against its definition."""

import math

import numpy as np
import pandas as pd
import pytest

from tv.errors import InputError
from tv.evaluation.paired import compare, mcnemar_p, summarise


def items(values: dict[str, list[float]], *, task: str = "t", metric: str = "acc") -> pd.DataFrame:
    rows = [
        {"variant": variant, "task": task, "metric": metric, "item_id": str(i), "value": value}
        for variant, own in values.items()
        for i, value in enumerate(own)
    ]
    return pd.DataFrame(rows)


def test_mcnemar_is_the_sign_test_of_the_items_on_which_two_differ() -> None:
    first, second = [0] * 9 + [1] * 4 + [1] * 20, [1] * 9 + [0] * 1 + [1] * 23
    gained, lost = 9, 1
    tail = sum(math.comb(10, k) for k in range(lost + 1)) / 2**10
    assert mcnemar_p(first, second) == pytest.approx(2 * tail) and gained + lost == 10
    assert mcnemar_p(second, first) == pytest.approx(2 * tail)
    assert mcnemar_p(first, first) == 1.0 and mcnemar_p([np.nan, 1], [0, 1]) == 1.0


def test_means_have_intervals_that_hold_them() -> None:
    rng = np.random.default_rng(0)
    found = summarise(items({"a": list(rng.integers(0, 2, 80) * 1.0), "b": [1.0] * 80}), draws=500).set_index("variant")
    assert found.n.tolist() == [80, 80]
    assert 0 < found.lo["a"] < found.value["a"] < found.hi["a"] < 1
    assert (found.lo["b"], found.value["b"], found.hi["b"]) == (1.0, 1.0, 1.0)
    width = found.hi["a"] - found.lo["a"]
    assert width == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(80), rel=0.2)


def test_differences_are_taken_item_by_item() -> None:
    hard = list(np.linspace(-50, 50, 40))  # items differ far more than variants do
    table = pd.concat(
        [
            items({"base": hard, "up": [value + 1 for value in hard]}, metric="nll"),
            items({"base": [0.0] * 30 + [1.0] * 10, "up": [1.0] * 40}),
        ]
    )
    found = compare(table, "base", draws=500).set_index("metric")
    assert found.difference["nll"] == pytest.approx(1) and found.lo["nll"] == pytest.approx(1)
    assert found.test.to_dict() == {"nll": "wilcoxon", "acc": "mcnemar"}
    assert found.difference["acc"] == 0.75 and found.p["acc"] == pytest.approx(2 / 2**30)
    assert (found.q >= found.p).all() and (found.variant == "up").all()


def test_rounding_is_no_difference() -> None:
    table = items({"base": [1.0] * 30, "same": [1.0 + 1e-7] * 30, "other": [1.0 + 1e-3] * 30}, metric="nll")
    found = compare(table, "base", draws=100).set_index("variant")
    assert found.p["same"] == 1 and found.difference["same"] == 0 and found.p["other"] < 1e-5


def test_items_are_matched_by_their_ids_and_not_by_their_order() -> None:
    table = items({"base": [0.0, 1.0, 0.0, 1.0], "up": [0.0, 1.0, 0.0, 1.0]}).sample(frac=1, random_state=1)
    found = compare(table, "base", draws=100)
    assert found.difference.tolist() == [0.0] and found.p.tolist() == [1.0]
    fewer = table[~((table.variant == "up") & (table.item_id == "1"))]
    assert compare(fewer, "base", draws=100).n.tolist() == [3]
    apart = table.assign(item_id=table.variant + table.item_id)
    assert compare(apart, "base", draws=100)[["difference", "p", "q"]].isna().to_numpy().all()


def test_bad_input_is_named() -> None:
    table = items({"base": [0.0], "up": [1.0]})
    with pytest.raises(InputError, match=r"no variant 'tuned'.*base, up"):
        compare(table, "tuned")
    with pytest.raises(InputError, match="task t: an item id stands twice"):
        summarise(pd.concat([table, table]))
