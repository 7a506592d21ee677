"""What is held against draws of a null is held against what they reach at the same rank."""

import numpy as np

from probes.discovery.null import beyond


def test_under_the_null_one_list_in_twenty_stands_out_at_the_5_percent_level() -> None:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(600):
        lists = np.sort(generator.normal(size=(21, 40)), axis=1)[:, ::-1][:, :8]
        found.append(beyond(lists[0], lists[1:]).p[0] < 0.05)
    assert 0.02 < np.mean(found) < 0.09


def test_no_rank_is_surer_than_the_one_before_it() -> None:
    draws = np.tile(np.linspace(1, 0.5, 5), (20, 1)) + np.random.default_rng(1).normal(scale=0.05, size=(20, 5))
    found = beyond([1.0, 9.0, 9.0, 9.0, 9.0], draws)
    assert (np.diff(found.p) >= 0).all() and found.p[1] >= found.p[0] > 0.05
    assert found.rank_p[1] == 1 / 21


def test_few_draws_say_no_more_than_their_number() -> None:
    assert beyond([100.0], np.ones((4, 1))).p.tolist() == [0.2]


def test_without_draws_nothing_is_said() -> None:
    found = beyond([1.0, 2.0], np.zeros((0, 0)))
    assert np.isnan(found.p).all() and np.isnan(found.null).all()


def test_shares_of_few_texts_are_no_surer_than_their_steps() -> None:
    shares = np.random.default_rng(2).binomial(24, 0.04, size=(20, 1)) / 24
    assert beyond([shares.max() + 1 / 24], shares).p[0] > 0.01
    assert beyond([0.9], shares).p[0] < 0.01
    assert beyond([0.9], np.zeros((20, 1))).p[0] == 1 / 21
