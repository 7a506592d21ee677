"""Shares of prompts: published values, coverage near 0 and 1, and clusters that count as what they are."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from tv.stats.proportions import effective_n, mcnemar_p, share_change, share_interval


def test_wilson_by_scipy() -> None:
    for ones, n in ((0, 8), (8, 8), (3, 17), (47, 48)):
        wanted = reference.binomtest(ones, n).proportion_ci(method="wilson")
        assert share_interval([1] * ones + [0] * (n - ones))[1:] == pytest.approx(tuple(wanted))


def test_newcombe_by_his_example() -> None:
    """His table III: 36 right in both, 12 in the first alone, 2 in the second alone, none in neither."""
    before = [1] * 36 + [1] * 12 + [0] * 2
    after = [1] * 36 + [0] * 12 + [1] * 2
    assert share_change(before, after) == pytest.approx((-0.2, -0.3404, -0.0569), abs=1e-4)
    assert share_change(after, before) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)


def test_no_change_seen_is_no_proof_of_none() -> None:
    """Of 8 prompts none turned: with a true loss of 5 % that is what is seen two times of three."""
    change, lo, hi = share_change([1] * 8, [1] * 8)
    assert change == 0 and lo < -0.2 and hi > 0.2


def test_intervals_of_a_change_cover() -> None:
    rng = np.random.default_rng(0)
    for n in (8, 24):
        covered = []
        for _ in range(600):
            before = rng.random(n) < 0.8
            after = np.where(rng.random(n) < 0.3, rng.random(n) < 0.4, before)
            _, lo, hi = share_change(before, after)
            covered.append(lo <= 0.3 * (0.4 - 0.8) <= hi)
        assert np.mean(covered) > 0.93


def test_prompts_of_a_cluster_that_go_together_count_as_one() -> None:
    names = [str(i) for i in np.repeat(np.arange(12), 5)]
    together = np.repeat(np.random.default_rng(1).random(12) < 0.6, 5).astype(float)
    assert effective_n(together, names) < 12.5
    _, lo, hi = share_interval(together, names)
    _, lo_bare, hi_bare = share_interval(together)
    assert hi - lo > 1.7 * (hi_bare - lo_bare)
    assert effective_n(np.ones(60), names) == 12
    assert effective_n(together, [str(i) for i in range(60)]) == 60


def test_intervals_over_clusters_cover() -> None:
    rng = np.random.default_rng(2)
    names = [str(i) for i in np.repeat(np.arange(10), 6)]
    covered = []
    for _ in range(500):
        values = (rng.random((10, 6)) < rng.beta(8, 2, size=(10, 1))).ravel()
        _, lo, hi = share_interval(values, names)
        covered.append(lo <= 0.8 <= hi)
    assert np.mean(covered) > 0.93


def test_mcnemar_is_the_sign_test_of_what_turned() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.random((2, 40)) < 0.6
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    assert mcnemar_p(before, after) == pytest.approx(reference.binomtest(gained, gained + lost).pvalue)
    assert mcnemar_p([1, 1, 1, 1], [0, 0, 0, 0]) == 0.125 and mcnemar_p([1, 0], [1, 0]) == 1
    assert math.isnan(mcnemar_p([], []))
    assert mcnemar_p([1, 1, 1, 1, np.nan], [0, 0, 0, 0, 1]) == 0.125


def test_mcnemar_turns_clusters_whole() -> None:
    """Six losses in two templates are two coins: nothing surprising."""
    lost = [1] * 6, [0] * 6
    assert mcnemar_p(*lost) == pytest.approx(2 / 2**6)
    assert mcnemar_p(*lost, ["a", "a", "a", "b", "b", "b"]) == 0.5
    assert mcnemar_p([1, 1, 0], [0, 0, 1], ["a", "a", "b"]) == 1


def test_few_prompts_have_no_interval() -> None:
    assert np.isnan(share_interval([1] * 7)[1:]).all() and np.isnan(share_change([1] * 7, [0] * 7)[1:]).all()
    four = [str(i % 4) for i in range(48)]
    assert np.isnan(share_change([1] * 48, [0] * 48, four)[1:]).all()
    assert np.isnan(share_interval([])).all()
