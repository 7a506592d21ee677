"""Resamples that are paired, and intervals that cover."""

import numpy as np
import pytest

from tv.stats.resampling import ends, resample_means


def test_resamples_are_paired_and_seeded() -> None:
    a = np.random.default_rng(3).normal(size=30)
    drawn = resample_means(np.stack([a, a, a + 5], 1), 300, 7)
    assert drawn.shape == (300, 3) and np.array_equal(drawn[:, 0], drawn[:, 1])
    assert np.allclose(drawn[:, 2], drawn[:, 0] + 5) and drawn[:, 0].std() == pytest.approx(a.std() / 30**0.5, rel=0.15)
    assert np.allclose(resample_means(a[:, None], 300, 7)[:, 0], drawn[:, 0])
    assert not np.allclose(resample_means(a[:, None], 300, 8)[:, 0], drawn[:, 0])


def test_missing_values_are_left_out_per_unit() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan], [5.0, 6.0, np.nan]])
    drawn = resample_means(values, 200, 0)
    known = drawn[~np.isnan(drawn[:, 1]), 1]
    assert drawn[:, 0].min() == 1 and drawn[:, 0].max() == 5 and np.isnan(drawn[:, 2]).all()
    assert set(known) >= {4.0, 5.0, 6.0} and known.min() == 4 and np.isnan(drawn[:, 1]).any()
    assert np.isnan(resample_means(np.empty((0, 2)), 10, 0)).all()


def test_clusters_are_drawn_whole() -> None:
    """Two clusters: every draw is the mean of one, of the other, or of all."""
    drawn = resample_means(np.array([[0.0], [1.0], [8.0]]), 100, 0, ["a", "a", "b"])
    assert set(drawn[:, 0]) == {0.5, 3.0, 8.0}


def test_ends_are_further_out_for_few_units() -> None:
    """Of normal units the mean's resamples, so spread, cover as t does; plain percentiles do not."""
    rng, wide, plain = np.random.default_rng(10), 0, 0
    for _ in range(300):
        drawn = resample_means(rng.normal(size=(8, 1)), 400, 0)[:, 0]
        lo, hi = ends(drawn, 8)
        wide += lo <= 0 <= hi
        plain += np.quantile(drawn, 0.025) <= 0 <= np.quantile(drawn, 0.975)
    assert wide >= 0.92 * 300 > plain
    draws = np.arange(2001.0)
    assert [float(end) for end in ends(draws, 10**6)] == [50, 1950]
    assert ends(draws, 8)[0] < ends(draws, 20)[0] < 50


def test_ends_of_too_few_units_and_of_draws_without_a_value() -> None:
    drawn = np.array([[1.0, np.nan, np.inf], [2.0, np.nan, 3.0], [np.nan, np.nan, np.inf]])
    assert np.isnan(ends(drawn, 7)).all()
    lo, hi = ends(drawn, 8)
    assert (lo[0], hi[0]) == (1, 2) and np.isnan([lo[1], hi[1]]).all() and (lo[2], hi[2]) == (3, np.inf)
