"""Rank correlations: what stands out of shuffled units, and intervals over units and prompts."""

import warnings

import numpy as np
import pytest
from scipy import stats as reference

from tv.stats.means import Floats
from tv.stats.ranks import bootstrap_spearman, family_p, rank_correlations, shuffled_p, shuffled_spearman

RNG = np.random.default_rng


def _of(
    x: Floats, y: Floats, draws: int = 300, seed: int = 0, **options: list
) -> tuple[float, float, float, int, float]:
    """(rho, lo, hi, n, p) of one pair; y is (units,) or (prompts, units)."""
    found = rank_correlations([x], [np.atleast_2d(y)], draws=draws, seed=seed, **options)
    numbers = (found.rho, found.lo, found.hi, found.n, shuffled_p(found.rho, found.null))
    return tuple(number.item() for number in numbers)  # type: ignore[return-value]


def test_of_one_type_it_is_spearman_s_with_ties() -> None:
    rng = RNG(4)
    x, y = np.arange(12.0), rng.normal(size=(10, 12))
    tied = np.floor(x / 3)
    found = rank_correlations([x, tied, -y.mean(0)], [y, y**3], draws=50, seed=0)
    for i, left in enumerate((x, tied, -y.mean(0))):
        for j, right in enumerate((y.mean(0), (y**3).mean(0))):
            assert found.rho[i, j] == pytest.approx(reference.spearmanr(left, right).statistic)
    assert (found.n == 12).all() and found.null.shape == (50, 3, 2)


def test_p_is_that_of_a_permutation_test() -> None:
    x, y = np.arange(9.0), np.array([2.0, 0, 1, 5, 3, 4, 8, 6, 7])
    wanted = reference.permutation_test(
        (x,), lambda a: reference.spearmanr(a, y).statistic, permutation_type="pairings", n_resamples=1500, rng=1
    )
    assert _of(x, y, draws=4000)[4] == pytest.approx(wanted.pvalue, abs=0.006) and wanted.pvalue < 0.02
    few = [_of(np.arange(n), np.arange(n) * 1.0, draws=2000)[4] for n in (3, 4)]
    assert few == pytest.approx([2 / 6, 2 / 24], abs=0.03)  # no order of so few units can stand out


def test_ranks_are_taken_within_types() -> None:
    """q lies above k on both sides, and layers say nothing: of all units together rho would be 0.75 and more."""
    rng, layers = RNG(0), list(range(16))
    types, blocks = ["k"] * 16 + ["q"] * 16, layers * 2
    x, y = (np.repeat([0.0, 100.0], 16) + rng.normal(size=32) for _ in range(2))
    rho, lo, hi, n, p = _of(x, np.tile(y, (9, 1)), types=types, blocks=blocks)
    assert reference.spearmanr(x, y).statistic > 0.7 and abs(rho) < 0.35 and p > 0.05 and lo < 0 < hi and n == 32
    each = [reference.spearmanr(x[part], y[part]).statistic for part in (slice(16), slice(16, 32))]
    assert rho == pytest.approx(np.mean(each))


def test_units_of_one_block_are_shuffled_together() -> None:
    """Seven types that all follow their layer are no more than one: their null is as wide as that of 12 layers."""
    depth = RNG(1).normal(size=(2, 12))
    types, blocks = [str(i) for i in np.repeat(np.arange(7), 12)], list(range(12)) * 7
    shared = rank_correlations(
        [np.tile(depth[0], 7)], [np.tile(depth[1], (1, 7))], draws=999, seed=3, types=types, blocks=blocks
    )
    one = rank_correlations([depth[0]], [depth[1:]], draws=999, seed=3)
    assert shared.rho == pytest.approx(one.rho) and np.allclose(shared.null, one.null)
    apart = RNG(2).normal(size=(2, 84))
    free = rank_correlations([apart[0]], [apart[1:]], draws=999, seed=3, types=types, blocks=blocks)
    assert free.null.std() < 0.5 * shared.null.std()


def test_blocks_change_places_with_their_like_alone() -> None:
    """Every fourth layer has q too. A block of a kind of its own, and unknown units, are left out."""
    types = [*"gggggggg", *"qq", "o"]
    blocks = [*range(8), 0, 4, 7]
    x, y = np.arange(11.0), np.arange(11.0) ** 2
    rho, *_, n, _ = _of(x, y, types=types, blocks=blocks)
    assert rho == pytest.approx(1) and n == 5 + 2 + 2  # layer 7 is alone in having o
    assert _of(np.where(x == 3, np.nan, x), y, types=types, blocks=blocks)[3] == 8
    found = rank_correlations([x, np.where(x < 5, np.nan, x)], [y[None]], draws=20, seed=0)
    assert found.n.ravel().tolist() == [11, 6]


@pytest.mark.thorough
@pytest.mark.parametrize(("seed", "layers"), [(0, 12), (1, 24)])
def test_one_report_in_twenty_names_a_pair_where_units_are_shuffled(seed: int, layers: int) -> None:
    """Five weight measures and four of what happened; each side goes together in itself. A report is one family."""
    rng, named, alone = RNG(seed), 0, 0
    types, blocks = [str(i) for i in np.repeat(np.arange(3), layers)], list(range(layers)) * 3
    for trial in range(150):
        common, depth = rng.normal(size=(2, 3 * layers)), np.tile(rng.normal(size=(2, layers)), 3)
        xs = rng.normal(size=(5, 3 * layers)) + common[0] + depth[0]
        ys = rng.normal(size=(4, 3 * layers)) + common[1] + depth[1]
        found = rank_correlations(xs, list(ys[:, None]), draws=99, seed=trial, types=types, blocks=blocks)
        rho, null = found.rho.ravel(), found.null.reshape(99, -1)
        named += family_p(rho, null).min() < 0.05
        alone += shuffled_p(rho, null).min() < 0.05
    assert named / 150 <= 0.08 and alone / 150 > 0.15  # 4 % are expected with 99 shuffles


def test_a_planted_pair_stands_out_and_the_others_do_not() -> None:
    rng = RNG(5)
    xs, ys = rng.normal(size=(6, 40)), rng.normal(size=(5, 40))
    ys[3] = xs[2] + 0.4 * rng.normal(size=40)
    found = rank_correlations(xs, list(ys[:, None]), draws=999, seed=0)
    p = family_p(found.rho.ravel(), found.null.reshape(999, -1)).reshape(6, 5)
    assert p[2, 3] == 1 / 1000 and (p < 0.05).sum() == 1
    assert (p >= shuffled_p(found.rho, found.null)).all()


def test_pairs_of_few_units_do_not_hide_those_of_many() -> None:
    """A pair of 5 units reaches ±1 by chance; in its own deviations that is not far."""
    rng = RNG(6)
    many, few = rng.normal(0, 0.1, size=(999, 1)), rng.normal(0, 0.45, size=(999, 1)).clip(-1, 1)
    p = family_p(np.array([0.5, 0.5]), np.hstack([many, few]))
    assert p[0] < 0.01 < 0.2 < p[1]
    assert np.isnan(family_p(np.array([np.nan, 0.5]), np.hstack([few, many]))[0])


@pytest.mark.parametrize("units", [12, 24, 84])
@pytest.mark.parametrize(("r", "noise"), [(0.0, 0.0), (0.5, 2.0), (0.9, 0.0)])
def test_intervals_cover_over_other_units_and_prompts(units: int, r: float, noise: float) -> None:
    """Correlated normal units; noise between eight prompts attenuates what is estimated: rho of measured means."""
    rng, rows = RNG(units), []
    for trial in range(60):
        x = rng.normal(size=units)
        y = r * x + np.sqrt(1 - r * r) * rng.normal(size=units)
        rows.append(_of(x, y + noise * rng.normal(size=(8, units)), draws=60, seed=trial))
    rho, lo, hi, *_ = np.array(rows).T
    true = 6 / np.pi * np.arcsin(r / np.sqrt(1 + noise**2 / 8) / 2)
    assert np.mean((lo <= true) & (true <= hi)) >= 0.9  # ≥ .96 over 200 trials each
    assert np.all((lo <= rho) & (rho <= hi))


def test_few_units_or_prompts_have_no_interval() -> None:
    x = np.arange(8.0)
    y = x + RNG(7).normal(size=(8, 8))
    assert not np.isnan(_of(x, y)[1])
    for fewer in (_of(x[:7], y[:, :7]), _of(x, y[:7]), _of(x, y, clusters=[*"aabcdefg"])):
        assert np.isnan(fewer[1:3]).all() and fewer[0] > 0.5 and fewer[4] < 0.2
    rho, lo, hi, *_ = _of(x, np.tile(x, (8, 1)))
    assert rho == hi == pytest.approx(1) and lo < 0.98  # eight units in one order are not certainty


def test_what_differs_by_rounding_is_tied() -> None:
    x, rng = np.arange(9.0), RNG(8)
    for level in (0.5, 1 / 6, 1e-4, 3e7):
        assert np.isnan(_of(x, level * (1 + 1e-7 * rng.normal(size=9)))[0])
    assert _of(x, 0.5 + 1e-4 * x)[0] == pytest.approx(1)


def test_degenerate_correlations_are_nan() -> None:
    y = RNG(7).normal(size=(10, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x in ([1, 1, 1, 1], [1, 2, np.nan, np.nan], [np.nan] * 4):
            rho, lo, hi, n, p = _of(np.array(x), y)
            assert np.isnan([rho, lo, hi, p]).all() and n == (~np.isnan(x)).sum()
        assert np.isnan(_of(np.arange(4), np.ones((10, 4)))[0])
        assert np.isnan(bootstrap_spearman(y, np.ones((10, 4)), 20, 0)[0])
        assert np.isnan(bootstrap_spearman(y[:, :2], y[:, :2], 20, 0)[0])
        assert rank_correlations(np.empty((2, 0)), [], draws=5, seed=0).rho.shape == (2, 0)
        assert family_p(np.array([]), np.empty((5, 0))).shape == (0,)


def test_both_sides_may_come_from_prompts() -> None:
    shared = RNG(6).normal(size=(20, 8))
    rho, lo, hi, n = bootstrap_spearman(shared, 2 * shared + 1, 200, 0)
    assert (rho, n) == (pytest.approx(1), 8) and lo == pytest.approx(1) and hi == pytest.approx(1)
    apart = shared + RNG(9).normal(size=(20, 8))
    wanted = reference.spearmanr(shared.mean(0), apart.mean(0)).statistic
    assert bootstrap_spearman(shared, apart, 200, 0)[0] == pytest.approx(wanted)


def test_intervals_over_prompts_cover_where_units_are_well_apart() -> None:
    """Prompts move every unit up and down together or apart; the rank order of the true means is known."""
    rng, hits = RNG(5), 0
    x, true = np.tile(np.arange(10.0), (40, 1)), np.array([0, 2, 1, 3, 5, 4, 6, 8, 7, 9.0])
    wanted = reference.spearmanr(x[0], true).statistic
    for trial in range(100):
        _, lo, hi, _ = bootstrap_spearman(x, true + rng.normal(size=(40, 10)) * 2.5, 300, trial)
        hits += lo <= wanted + 1e-9 and hi >= wanted - 1e-9
    assert hits >= 88


def test_clusters_are_drawn_whole() -> None:
    """Twelve prompts copied four times say no more than twelve."""
    rng = RNG(10)
    x, y = rng.normal(size=(12, 9)) + np.arange(9), rng.normal(size=(12, 9)) + np.arange(9)
    alone = bootstrap_spearman(x, y, 400, 0)
    copies = [np.repeat(side, 4, axis=0) for side in (x, y)]
    clusters = [str(i) for i in np.repeat(np.arange(12), 4)]
    whole, split = bootstrap_spearman(*copies, 400, 0, clusters), bootstrap_spearman(*copies, 400, 0)
    assert whole.rho == pytest.approx(alone.rho) and whole.hi - whole.lo == pytest.approx(alone.hi - alone.lo, rel=0.25)
    assert split.hi - split.lo < 0.7 * (whole.hi - whole.lo)
    assert np.isnan(bootstrap_spearman(x, y, 400, 0, [*"aaaaaaabcdef"]).lo)


def test_shuffled_units_are_the_null_of_a_rank_correlation() -> None:
    lo, hi, p = shuffled_spearman(0.9, 12, 4000, 0)
    assert -0.65 < lo < -0.5 and 0.5 < hi < 0.65 and p < 0.005  # t with 10 degrees of freedom: ±0.576
    assert shuffled_spearman(0.0, 12, 100, 0)[2] == 1
    assert np.isnan(shuffled_spearman(0.5, 2, 100, 0)).all() and np.isnan(shuffled_spearman(np.nan, 5, 100, 0)).all()
