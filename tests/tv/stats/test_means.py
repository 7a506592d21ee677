"""Intervals of means cover where effects are skewed, sparse or clustered, and p and interval answer one question."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats as reference

from tv.stats.means import FEWEST, Mean, detectable, mean_interval

Drawn = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def _sparse(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return (rng.random(shape) < 0.3) * rng.normal(1, 1, shape)


@pytest.mark.parametrize("n", [8, 16, 48])
@pytest.mark.parametrize(
    ("draw", "true"),
    [
        (lambda rng, shape: rng.normal(1, 1, shape), 1.0),
        (lambda rng, shape: rng.exponential(size=shape), 1.0),
        (lambda rng, shape: rng.lognormal(size=shape), math.exp(0.5)),
        (_sparse, 0.3),
    ],
    ids=["normal", "exponential", "lognormal", "sparse"],
)
def test_shown_intervals_cover(draw: Drawn, true: float, n: int) -> None:
    """4,000 columns are as many experiments; three standard errors of a share of 0.93 are 0.012."""
    found = mean_interval(draw(np.random.default_rng(n), (n, 4000)))
    shown = ~np.isnan(found.lo)
    assert shown.mean() > 0.4
    assert ((found.lo <= true) & (found.hi >= true))[shown].mean() > 0.93 - 0.012


def test_p_is_below_5_percent_exactly_where_the_interval_leaves_0_out() -> None:
    rng = np.random.default_rng(1)
    for n in (8, 12, 48):
        values = np.concatenate([rng.normal(0.4, 1, (n, 500)), rng.lognormal(size=(n, 500)) - 1], 1)
        found = mean_interval(values)
        assert 50 < (found.p < 0.05).sum() < 950
        assert np.array_equal(found.p < 0.05, (found.lo > 0) | (found.hi < 0))
        assert (found.p >= reference.ttest_1samp(values, 0).pvalue - 1e-12).all()


def test_without_skew_it_is_students_t() -> None:
    even = np.array([-3.0, -2, -1, -0.5, 0.5, 1, 2, 3]) + 2
    found, t = mean_interval(even), reference.ttest_1samp(even, 0)
    assert float(found.p) == pytest.approx(t.pvalue)
    assert (float(found.lo), float(found.hi)) == pytest.approx(tuple(t.confidence_interval()))


def test_prompts_of_one_cluster_are_one_draw() -> None:
    """Every cluster holds copies of one prompt: the interval is that of the single prompts."""
    single = np.random.default_rng(2).normal(1, 1, 11)
    copies, names = np.repeat(single, 3), [str(i) for i in np.repeat(np.arange(11), 3)]
    alone, together, ignored = mean_interval(single), mean_interval(copies, names), mean_interval(copies)
    for a, b in zip(alone, together, strict=True):
        assert float(a) == pytest.approx(float(b))
    assert together.n == 11
    assert ignored.hi - ignored.lo < 0.7 * (together.hi - together.lo)


def test_intervals_over_clusters_cover() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 9, 12)
    which = np.repeat(np.arange(12), sizes)
    values = rng.normal(size=(12, 3000))[which] + rng.normal(size=(len(which), 3000))
    found = mean_interval(values, [str(i) for i in which])
    assert ((found.lo <= 0) & (found.hi >= 0)).mean() > 0.93
    bare = mean_interval(values)
    assert ((bare.lo <= 0) & (bare.hi >= 0)).mean() < 0.8


def test_too_few_units_have_no_interval() -> None:
    rng = np.random.default_rng(4)
    for values, clusters in (
        (rng.normal(size=FEWEST - 1), None),
        (rng.normal(size=40), [str(i % (FEWEST - 1)) for i in range(40)]),
        (np.r_[np.zeros(20), 1.0, 2.0], None),
        (np.ones(12), None),
    ):
        found = mean_interval(values, clusters)
        assert float(found.mean) == pytest.approx(values.mean())
        assert np.isnan([found.lo, found.hi, found.p]).all()
    assert np.isfinite(mean_interval(rng.normal(size=FEWEST)).lo)


def test_where_nothing_moved_p_is_1_and_without_a_value_nothing_is_known() -> None:
    still = mean_interval(np.zeros(12))
    assert still.p == 1 and still.mean == 0 and math.isnan(still.lo)
    for empty in (np.empty((0, 2)), np.full((9, 2), np.nan)):
        found = mean_interval(empty)
        assert np.isnan(found[:4]).all() and found.n.tolist() == [0, 0]


def test_missing_values_are_left_out_unit_by_unit() -> None:
    rng = np.random.default_rng(5)
    table = rng.normal(size=(14, 2))
    table[10:, 1] = np.nan
    clusters = ["a", "a", *map(str, range(12))]
    for names in (None, clusters):
        found = mean_interval(table, names)
        alone = mean_interval(table[:10, 1], names and names[:10])
        assert isinstance(found, Mean)
        for part, one in zip(found, alone, strict=True):
            assert float(part[1]) == pytest.approx(float(one))


@pytest.mark.parametrize("n", [8, 12, 16, 48])
def test_detectable_size_has_its_power(n: int) -> None:
    """At the size that n prompts should show in 80 % of runs, their p does."""
    values = np.random.default_rng(6).normal(detectable(n), 1, (n, 4000))
    assert (mean_interval(values).p < 0.05).mean() == pytest.approx(0.8, abs=0.03)
    assert math.isnan(detectable(FEWEST - 1))
