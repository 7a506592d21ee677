"""What addition gains, on items that are known: better is above 0, whatever the metric's direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tv.experiments.adding import _Items, _reported


def items(base: np.ndarray, single: np.ndarray, best: np.ndarray, clusters: list[str] | None = None) -> _Items:
    values = pd.DataFrame({"base": base, "single": single, "best": best}, dtype=float)
    return _Items("m", values, clusters or [str(i) for i in range(len(values))])


def reported(held_out: dict[str, _Items], better: dict[str, bool]) -> dict[str, dict[str, Any]]:
    return dict(_reported("best", "single", held_out, better))


def test_a_loss_that_falls_is_a_gain() -> None:
    rng = np.random.default_rng(0)
    single = rng.normal(3, 1, 30)
    fallen = items(single + 2, single, single - rng.normal(0.5, 0.2, 30))
    found = reported({"text": fallen}, {"text": False})["text"]
    assert found["gain"] == pytest.approx(0.5, abs=0.1) and 0.3 < found["gain_lo"] < found["gain"] < found["gain_hi"]
    assert found["value"] == pytest.approx(fallen.values.best.mean()) and found["p"] < 0.001
    wrong = reported({"text": fallen}, {"text": True})["text"]
    assert (wrong["gain"], wrong["gain_lo"], wrong["gain_hi"]) == pytest.approx(
        (-found["gain"], -found["gain_hi"], -found["gain_lo"])
    )


def test_the_mean_over_tasks_does_not_cancel_a_rise_against_a_fall() -> None:
    rng = np.random.default_rng(1)
    right = (rng.random(40) < 0.5).astype(float)
    answers = items(right * 0, right, np.maximum(right, rng.random(40) < 0.8))
    losses = items(right + 5, right + 3, right + 3 - rng.normal(0.4, 0.2, 40))
    found = reported({"answers": answers, "text": losses}, {"answers": True, "text": False})
    gains = [found[name]["gain"] for name in ("answers", "text")]
    mean = found["mean over tasks"]
    assert min(gains) > 0.2 and mean["gain"] == pytest.approx(np.mean(gains)) and mean["n"] == 80
    assert 0 < mean["gain_lo"] < mean["gain"] < mean["gain_hi"] and np.isnan(mean["p"])
    half = [found[name]["gain"] - found[name]["gain_lo"] for name in ("answers", "text")]
    assert mean["gain"] - mean["gain_lo"] == pytest.approx(np.hypot(*half) / 2), "independent tasks"


def test_few_templates_give_no_interval_and_shares_their_own() -> None:
    right = np.r_[np.ones(20), np.zeros(4)]
    found = reported({"t": items(right * 0, right, right)}, {"t": True})["t"]
    assert found["gain"] == 0 and found["gain_lo"] < -0.03 and found["gain_hi"] > 0.03 and found["p"] == 1
    few = reported({"t": items(right * 0, right, right, [str(i % 4) for i in range(24)])}, {"t": True})
    for row in few.values():
        assert np.isnan([row["lo"], row["hi"], row["gain_lo"], row["gain_hi"]]).all() and row["gain"] == 0
