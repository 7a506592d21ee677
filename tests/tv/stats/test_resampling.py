"""Resamples that are paired, and intervals that cover."""

import numpy as np
import pytest
from scipy import stats as reference

from tv.stats.resampling import bootstrap_mean, ends, resample_means, wilcoxon_p


def test_intervals_of_means_cover() -> None:
    """400 units are 400 experiments of 40 prompts each, true mean 1; a percentile interval covers 93–95 %."""
    values = np.random.default_rng(0).exponential(size=(40, 400))
    mean, lo, hi = bootstrap_mean(values, draws=800, seed=1)
    assert np.allclose(mean, values.mean(0))
    assert 0.89 <= np.mean((lo <= 1) & (hi >= 1)) <= 0.97
    assert np.allclose((hi - lo).mean(), 2 * 1.96 / np.sqrt(40), rtol=0.1)


def test_prompts_are_the_unit() -> None:
    """Intervals widen when the same number of values comes from fewer prompts."""
    rng = np.random.default_rng(2)
    _, lo, hi = bootstrap_mean(rng.normal(size=400), 500, 0)
    _, lo_few, hi_few = bootstrap_mean(rng.normal(size=16), 500, 0)
    assert hi_few - lo_few > 2 * (hi - lo)


def test_resamples_are_paired_and_seeded() -> None:
    a = np.random.default_rng(3).normal(size=30)
    mean, lo, hi = bootstrap_mean(np.stack([a, a, a + 5], 1), 300, 7)
    assert lo[0] == lo[1] and hi[0] == hi[1] and np.isclose(lo[2], lo[0] + 5)
    again = bootstrap_mean(np.stack([a, a, a + 5], 1), 300, 7)
    assert all(np.array_equal(x, y) for x, y in zip((mean, lo, hi), again, strict=True))
    alone = bootstrap_mean(a, 300, 7)
    assert alone[0].shape == () and float(alone[1]) == pytest.approx(lo[0])
    assert not np.array_equal(bootstrap_mean(a, 300, 8)[1], alone[1])


def test_missing_values_are_left_out_per_unit() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan], [5.0, 6.0, np.nan]])
    mean, lo, hi = bootstrap_mean(values, 200, 0)
    assert mean[:2].tolist() == [3, 5] and np.isnan([mean[2], lo[2], hi[2]]).all()
    assert lo[1] == 4 and hi[1] == 6
    for empty in (np.empty((0, 2)), np.full((1, 2), np.nan)):
        assert np.isnan(bootstrap_mean(empty, 10, 0)).all()
    assert [float(v) for v in bootstrap_mean([2.0], 10, 0)] == [2, 2, 2]


def test_signed_ranks() -> None:
    values = np.random.default_rng(8).normal(1, 1, size=(20, 3))
    values[:, 1] = 0
    values[5:, 2] = np.nan
    p = wilcoxon_p(values)
    assert p[0] == pytest.approx(reference.wilcoxon(values[:, 0]).pvalue) and p[1] == 1
    assert p[2] == pytest.approx(reference.wilcoxon(values[:5, 2]).pvalue)
    assert float(wilcoxon_p(values[:, 0])) == p[0] and np.isnan(float(wilcoxon_p([np.nan])))


def test_signed_ranks_keep_their_level() -> None:
    p = wilcoxon_p(np.random.default_rng(9).normal(size=(25, 400)))
    assert np.mean(p < 0.05) < 0.08


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
