"""What is said of a change, at the borders."""

import math

import pytest

from tv.stats.change import said_of

NAN = math.nan


@pytest.mark.parametrize(
    ("change", "lo", "hi", "p", "said"),
    [
        (-5.6e-7, -8e-7, -3e-7, 1e-4, "within noise"),
        (0.0, NAN, NAN, 1.0, "within noise"),
        (0.02, 0.01, 0.03, 1e-4, "negligible"),
        (0.02, -0.01, 0.049, 0.3, "negligible"),
        (0.2, 0.01, 0.4, 0.04, "changed"),
        (0.2, 0.01, 0.4, 0.06, "cannot tell"),
        (0.2, -0.1, 0.5, 0.2, "cannot tell"),
        (0.2, NAN, NAN, NAN, "cannot tell"),
        (-0.5, NAN, NAN, NAN, "cannot tell"),
    ],
)
def test_said(change: float, lo: float, hi: float, p: float, said: str) -> None:
    assert said_of(change, lo, hi, p, floor=1e-5, matters=0.05) == said


def test_a_mean_of_nothing_is_no_noise_where_prompts_changed_both_ways() -> None:
    assert said_of(0.0, -0.3, 0.3, 1.0, floor=1e-5, matters=0.05, still=False) == "cannot tell"
    assert said_of(0.0, -5e-6, 5e-6, 1.0, floor=1e-5, matters=0.05, still=False) == "within noise"
