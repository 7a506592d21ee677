"""Whether behaviour returned: yes and no only where the items can tell."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tv.experiments.curves import judge
from tv.experiments.negating import _summary

POINTS = {f"{vector}, λ = {scale:g}": (vector, scale) for scale in (0.0, 1.0) for vector in ("T", "random")}


def said(base: np.ndarray, tuned: np.ndarray, own: np.ndarray, random: np.ndarray) -> dict[str, str]:
    """`returned` of T and of its control, where T's λ = 1 shows `own` and the control's `random`."""
    shown = {"base": base, "T, λ = 0": tuned, "random, λ = 0": tuned, "T, λ = 1": own, "random, λ = 1": random}
    rows = [
        {"variant": name, "task": "t", "metric": "m", "item_id": str(i), "value": float(value)}
        for name, values in shown.items()
        for i, value in enumerate(values)
    ]
    table = judge(pd.DataFrame(rows), "T, λ = 0", "base", draws=100, seed=0)
    table = table[table.variant.isin(POINTS)]
    kinds = table.variant.map(POINTS)
    table = table.assign(tuned="a", part="whole", vector=kinds.str[0], scale=kinds.str[1])
    return _summary(table).set_index("vector").returned.to_dict()


def test_what_tuning_brought_goes_with_t_and_not_with_its_control() -> None:
    none, every = np.zeros(16), np.ones(16)
    assert said(none, every, none, every) == {"T": "yes", "random": "no"}
    assert said(none, every, every, none) == {"T": "no", "random": "yes"}


def test_what_a_control_does_too_shows_nothing_of_t() -> None:
    none, every = np.zeros(16), np.ones(16)
    assert said(none, every, none, none) == {"T": "cannot tell", "random": "yes"}


@pytest.mark.parametrize("n", [4, 7])
def test_few_items_cannot_tell(n: int) -> None:
    none, every = np.zeros(n), np.ones(n)
    assert said(none, every, none, every)["T"] == "cannot tell"
    rng = np.random.default_rng(n)
    base = rng.normal(3, 1, n)
    assert said(base, base - 2, base, base - 2) == {"T": "cannot tell", "random": "cannot tell"}


def test_what_tuning_did_not_change_cannot_return() -> None:
    half = np.tile([0.0, 1.0], 12)
    assert said(half, half, half, half) == {"T": "cannot tell", "random": "cannot tell"}


def test_losses_return_within_rounding_or_within_half_of_what_tuning_brought() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(6, 1, 24)
    tuned, near, far = (base + rng.normal(step, spread, 24) for step, spread in ((-4, 0.5), (0.02, 0.3), (-1, 0.3)))
    assert said(base, tuned, base + 1e-6, tuned) == {"T": "yes", "random": "no"}
    assert said(base, tuned, near, tuned)["T"] == "yes"
    assert said(base, tuned, far, tuned)["T"] == "no"
    loose = base + rng.normal(0, 9, 24)
    assert said(base, tuned, loose, tuned)["T"] == "cannot tell", "an interval wider than what tuning brought"
