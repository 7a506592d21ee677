"""Halves are drawn by name, and a leader's held-out value has lost the luck that chose it."""

import numpy as np

from probes.attribution.halves import HALVES, halves, held_out


def test_a_prompt_less_leaves_the_others_where_they_were() -> None:
    names = [f"prompt {i}" for i in range(31)]
    every, fewer = (np.stack(list(halves(some, seed=3))) for some in (names, names[:17] + names[18:]))
    same = np.delete(every, 17, axis=1) == fewer
    assert len(every) == HALVES and set(every.sum(1)) == {15}
    assert (~same).sum(1).max() <= 1  # another prompt takes the place that is free, if any does
    order = np.random.default_rng(0).permutation(31)
    assert np.array_equal(np.stack(list(halves([names[i] for i in order], seed=3))), every[:, order])
    assert not np.array_equal(np.stack(list(halves(names, seed=4))), every)


def test_clusters_stay_whole_and_three_make_no_halves() -> None:
    for first in halves(list("aabbbcddde"), seed=0):
        assert first[0] == first[1] and len(set(first[2:5])) == 1 and len(set(first[6:9])) == 1
    assert not list(halves(list("aabbc"), seed=0))


def test_what_luck_chose_is_worth_little_elsewhere() -> None:
    """64 units, 5 of them real: the largest mean is too large, its held-out value is not."""
    generator, raw, apart, true = np.random.default_rng(1), [], [], []
    for draw in range(60):
        real = np.where(np.arange(64) < 5, generator.normal(size=64), 0)
        values = real[:, None] + 3 * generator.normal(size=(64, 24))
        top = np.abs(values.mean(1)).argmax()
        sign = np.sign(values[top].mean())
        raw.append(sign * values[top].mean())
        apart.append(sign * held_out(values, [str(i) for i in range(24)], draw)[top])
        true.append(sign * real[top])
    assert np.mean(raw) > np.mean(true) + 0.5
    assert np.mean(apart) < np.mean(true) + 0.1 and np.mean(apart) > 0


def test_ranks_units_without_values_and_few_clusters() -> None:
    alike = np.tile([[0.5], [-4.0], [2.0], [np.nan]], 11)
    assert np.array_equal(held_out(alike, list("abcdefghijk"), 0)[:3], [0.5, -4.0, 2.0])
    assert np.isnan(held_out(alike, list("abcdefghijk"), 0)[3])
    assert np.isnan(held_out(alike, list("abcdefgabcd"), 0)).all()  # seven clusters
    gaps = np.tile([[3.0], [1.0]], 12)
    gaps[1, :5] = np.nan
    assert held_out(gaps, [str(i) for i in range(12)], 0).tolist() == [3.0, 1.0]
