"""The change of W's spectrum and subspaces, against explicit decompositions of W and W + T."""

import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from tv.measures.decomposition import decompose, energies_along, fixed_k
from tv.measures.subspaces import INTRUDER_COSINE, INTRUDER_TOP, Change, _drawn, _turned, change_of

SHAPES = [(40, 70), (70, 40), (50, 50)]


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _change(weight: Tensor, delta: Tensor, draws: int = 0) -> Change:
    decomposition = decompose(weight)
    return change_of(decomposition, energies_along(decomposition, delta), draws)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [0.05, 1.0])
def test_against_two_decompositions(shape: tuple[int, int], size: float) -> None:
    weight, delta = _normal(*shape, seed=0), size * _normal(*shape, seed=1)
    found = _change(weight, delta)
    (u, s, vh), (u2, s2, vh2) = (torch.linalg.svd(each, full_matrices=False) for each in (weight, weight + delta))
    assert found.spectral_shift == pytest.approx(float((s2 - s).norm() / s.norm()))
    for side, before, after, dim in (("left", u, u2, shape[0]), ("right", vh.T, vh2.T, shape[1])):
        k = fixed_k(decompose(weight), dim)
        cosines = torch.linalg.svdvals(before[:, :k].T @ after[:, :k])
        assert getattr(found, f"kept_{side}") == pytest.approx(float(cosines.pow(2).mean()), abs=1e-6)
        angle = math.degrees(math.acos(min(1.0, float(cosines.min()))))
        assert getattr(found, f"largest_angle_{side}") == pytest.approx(angle, abs=1e-3)
        nearest = (before.T @ after[:, :INTRUDER_TOP]).abs().amax(0)
        assert getattr(found, f"intruders_{side}") == int((nearest < INTRUDER_COSINE).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_planted_intruder_is_found_on_both_sides(shape: tuple[int, int]) -> None:
    """A strong rank-1 T that points between all of W's directions; a T along W's own leading one is none."""
    weight = _normal(*shape, seed=0)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    between = torch.outer(u.mean(1), vh.mean(0))
    intruder = _change(weight, 3 * float(s[0]) * between / between.norm())
    assert (intruder.intruders_left, intruder.intruders_right) == (1, 1)
    amplified = _change(weight, 3 * float(s[0]) * torch.outer(u[:, 0], vh[0]))
    assert (amplified.intruders_left, amplified.intruders_right) == (0, 0)
    assert amplified.kept_left == pytest.approx(1) and amplified.largest_angle_left < 1e-3


def test_scaling_keeps_every_subspace_and_shifts_the_spectrum() -> None:
    weight = _normal(30, 50, seed=0)
    found = _change(weight, 0.25 * weight)
    assert found.spectral_shift == pytest.approx(0.25)
    assert (found.kept_left, found.kept_right) == pytest.approx((1, 1))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (25, 30), (20, 20)])
def test_a_turned_tuning_vector_keeps_its_spectrum_and_forgets_its_directions(shape: tuple[int, int]) -> None:
    """H and C of the random rotation are those of a T with the same singular values; their far sides agree in law."""
    weight, delta = _normal(*shape, seed=0), _normal(shape[0], 2, seed=1) @ _normal(2, shape[1], seed=2)
    decomposition = decompose(weight)
    energies = energies_along(decomposition, delta)
    r, n = min(shape), max(shape)
    expected = energies.spectrum.flip(0)
    crosses = []
    for seed in range(400):
        own, cross = _turned(decomposition, energies, _drawn(r, n, seed, weight.device))
        found = torch.linalg.eigvalsh(own).clamp(min=0).flip(0)
        assert torch.allclose(found, expected, atol=1e-5 * float(expected[0]))
        crosses.append(float(cross[:, 0].pow(2).sum() / decomposition.sigma[0] ** 2))
    share = torch.tensor(crosses) / float(expected.sum())  # ‖T v_1‖²/‖T‖² on the far side: 1/n on average
    assert abs(float(share.mean()) - 1 / n) < 4 * float(share.std()) / math.sqrt(len(crosses))
    straight = []
    for seed in range(400):
        v = torch.linalg.qr(_normal(n, r, seed=1000 + seed))[0]
        straight.append(float((energies.spectrum.sqrt()[:, None] * v.T[:, :1]).pow(2).sum()) / float(expected.sum()))
    assert float(share.std()) == pytest.approx(float(torch.tensor(straight).std()), rel=0.3)


def test_the_intruders_null_counts_what_turned_vectors_do() -> None:
    """A large T makes intruders wherever it points: the null says as much, so that the count alone says nothing."""
    weight, delta = _normal(60, 80, seed=0), 30 * _normal(60, 1, seed=1) @ _normal(1, 80, seed=2)
    found = _change(weight, delta, draws=20)
    assert found.intruders_left >= 1 and found.intruders_null_left >= 0.9
    small = _change(weight, 1e-3 * delta, draws=20)
    assert (small.intruders_left, small.intruders_null_left) == (0, 0)


def test_without_tuning_there_is_nothing_to_compare() -> None:
    for weight in (_normal(20, 30, seed=0), _normal(30, 2, seed=0) @ _normal(2, 20, seed=1), torch.zeros(9, 12)):
        found = asdict(_change(weight, torch.zeros_like(weight), draws=1))
        assert all(math.isnan(value) for value in found.values())


def test_a_step_too_small_to_turn_anything_turns_nothing() -> None:
    for weight in (_normal(20, 30, seed=0), _normal(30, 2, seed=0) @ _normal(2, 20, seed=1)):
        found = asdict(_change(weight, 1e-6 * weight, draws=1))
        assert found["spectral_shift"] < 1e-5 and found["kept_left"] > 1 - 1e-6
        assert found["intruders_left"] == found["intruders_null_left"] == 0
