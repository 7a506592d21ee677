"""What is retained along λ: exact on curves that are known."""

import numpy as np
import pandas as pd
import pytest

from tv.experiments.curves import area, half, judge, shares

SCALES = np.array([0.0, 0.5, 1.0, 1.5])


def test_half_is_where_the_line_between_the_points_crosses() -> None:
    curves = np.array([[1.0, 0.75, 0.25, 0.0], [1.0, 0.5, 0.0, 0.0], [1.0, 0.9, 0.8, 0.7], [0.4, 0.3, 0.2, 0.1]])
    assert half(SCALES, curves) == pytest.approx([0.75, 0.5, np.inf, 0.0])
    assert float(half(SCALES, curves[0])) == 0.75
    assert np.isnan(half(SCALES, np.array([1.0, np.nan, 0.0, 0.0])))


def test_area_is_a_half_where_behaviour_goes_as_the_vector_goes() -> None:
    assert float(area(SCALES, 1 - SCALES)) == pytest.approx(0.5)
    assert area(SCALES, np.array([[1.0, 1.0, 1.0, -9.0], [1.0, 0.0, 0.0, 5.0]])) == pytest.approx([1.0, 0.25])


def test_shares_are_of_the_way_between_the_ends() -> None:
    rng = np.random.default_rng(0)
    end = rng.normal(0, 5, 60)
    table = pd.DataFrame({"start": end + 2, "end": end, "quarter": end + 0.5, "beyond": end - 1})
    table["start"] += np.tile([-0.2, 0.0, 0.2], 20)  # without any spread there is no test
    items = [str(i) for i in range(60)]
    found = shares(table, items, "start", "end", 200, 0)
    assert found.mean == pytest.approx([1, 0, 0.25, -0.5])
    assert found.lo == pytest.approx(found.mean, abs=0.03)  # paired: items cancel
    assert found.hi == pytest.approx(found.mean, abs=0.03)
    few = [str(i % 7) for i in range(60)]
    assert np.isnan(shares(table, few, "start", "end", 200, 0).lo).all()
    alike = pd.DataFrame({"start": end + rng.normal(0, 1, 60), "end": end})
    assert np.isnan(shares(alike, items, "start", "end", 200, 0).mean).all()


def test_judge_joins_means_differences_and_shares() -> None:
    values = {"end": [0.0] * 20, "start": [1.0] * 20, "mid": [0.0, 1.0] * 10}
    rows = [
        {"variant": v, "task": "t", "metric": "acc", "item_id": str(i), "value": value}
        for v, own in values.items()
        for i, value in enumerate(own)
    ]
    found = judge(pd.DataFrame(rows), "start", "end", draws=200, seed=0).set_index("variant")
    assert found.retained.to_dict() == {"end": 0.0, "start": 1.0, "mid": 0.5}
    assert found.difference["mid"] == 0.5 and found.difference_lo["mid"] > 0.2 and found.p["mid"] == 2 / 2**10
    assert found.p_start["mid"] == 2 / 2**10 and found.p_start["end"] == 2 / 2**20 and np.isnan(found.p_start["start"])
    assert 0.2 < found.retained_lo["mid"] < 0.5 < found.retained_hi["mid"] < 0.8
    assert np.isnan(found.difference["end"]) and found.n.tolist() == [20, 20, 20]
