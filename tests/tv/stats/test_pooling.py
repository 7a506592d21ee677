"""z of many matrices as one question: calibrated whatever the rank of T, the shape and the number of layers."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tv.stats.pooling import normal_scores, pooled, two_sided

#: (dimension, directions kept): a tenth, one half, and a subspace at its ceiling.
CUTS = [(128, 13), (47, 5), (47, 24), (128, 124)]


def _under_the_null(dim: int, kept: int, energy: NDArray[np.float64], draws: int) -> tuple[NDArray[np.float64], float]:
    """SSA² of T with these squared singular values, turned at random, and the deviation that `rotation` gives it."""
    rng = np.random.default_rng(dim * kept + len(energy))
    energy = energy / energy.sum()
    turned = np.linalg.qr(rng.standard_normal((draws, dim, len(energy))))[0]
    share = ((turned[:, :kept] ** 2).sum(1) * energy).sum(1)
    mean = kept / dim
    variance = 2 * mean * (1 - mean) / (dim + 2) * (dim * (energy**2).sum() - 1) / (dim - 1)
    return share, math.sqrt(variance)


@pytest.mark.parametrize("layers", [1, 6, 30])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("rank", [1, 8])
def test_a_pooled_claim_is_as_rare_as_it_says(rank: int, cut: tuple[int, int], layers: int) -> None:
    """At the level that one of 21 claims needs; z itself is beyond it up to nine times as often."""
    dim, kept = cut
    share, deviation = _under_the_null(dim, kept, np.exp(-np.arange(rank) / 3.0), 2000)
    mean = kept / dim
    scores = normal_scores(share, np.full_like(share, mean), (share - mean) / deviation)
    assert abs(scores.mean()) < 0.1 and scores.std() == pytest.approx(1, abs=0.06)
    drawn = scores[np.random.default_rng(layers).integers(len(scores), size=(20_000, layers))]
    p = two_sided(drawn.sum(1) / math.sqrt(layers))
    assert float((p < 0.05).mean()) <= 0.062
    assert float((p < 0.05 / 21).mean()) <= 3 * 0.05 / 21


def test_z_alone_is_not_calibrated_where_the_null_is_skewed() -> None:
    share, deviation = _under_the_null(47, 45, np.ones(1), 4000)
    z = (share - 45 / 47) / deviation
    limit = stats.norm.isf(0.05 / 42)
    scores = normal_scores(share, np.full_like(share, 45 / 47), z)
    assert float((np.abs(z) > limit).mean()) > 5 * 0.05 / 21 > float((np.abs(scores) > limit).mean())


def test_scores_keep_the_sign_the_order_and_what_is_not_known() -> None:
    share = [0.02, 0.09, 0.1, 0.11, 0.3, 0.9, math.nan]
    scores = normal_scores(share, [0.1] * 7, [(s - 0.1) / 0.02 for s in share])
    assert np.isnan(scores[-1]) and (np.diff(scores[:-1]) > 0).all()
    assert scores[0] < 0 < scores[3] and scores[2] == 0
    assert np.isnan(normal_scores([1.0], [1.0], [0.0]))  # the whole space is kept: nothing can be said
    assert 36 < float(normal_scores([0.9], [0.1], [500.0])[0]) < 40
    wide = normal_scores([0.101], [0.1], [0.001 / 1e-4])  # a full T of a language model: the beta is a normal
    assert float(wide[0]) == pytest.approx(10, abs=0.05)


def test_pooling_leaves_out_what_did_not_move() -> None:
    assert pooled([2.0, math.nan, 2.0, math.nan]) == pytest.approx(2 * math.sqrt(2))
    assert math.isnan(pooled([math.nan])) and math.isnan(pooled([]))
