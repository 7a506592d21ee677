"""SCE, Karcher mean, fusion, calibration against their definitions, written out in float64; invariants of all four."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import optimize, special
from torch import Tensor

from tests.tv.arithmetic.methods.test_elementwise import draws
from tests.tv.arithmetic.methods.test_spectral import Array, arrays
from tv.arithmetic.methods.compose import check_method
from tv.arithmetic.methods.elementwise import addition
from tv.arithmetic.methods.fusion import fusion
from tv.arithmetic.methods.karcher import karcher
from tv.arithmetic.methods.sce import sce
from tv.arithmetic.methods.singular_values import calibrated
from tv.arithmetic.methods.terms import Method, Terms

METHODS = [sce, karcher, fusion, calibrated]
SCALES = [1.0, 0.6, -0.8]


def terms(*deltas: Tensor, seed: int = 9) -> Terms:
    (weight,) = draws(1, *deltas[0].shape, seed=seed)
    return Terms(deltas, weight)


def plain_sce(deltas: list[Array], scales: list[float], selected: float) -> Array:
    scaled = [scale * delta for delta, scale in zip(deltas, scales, strict=True)]
    variance = np.var(scaled, axis=0)
    kept = variance >= np.sort(variance.ravel())[-round(selected * variance.size)]
    scaled = [part * kept for part in scaled]
    weights = [(part**2).sum() / sum((other**2).sum() for other in scaled) for part in scaled]
    merged = np.zeros_like(variance)
    for at in zip(*np.nonzero(kept), strict=True):
        sign = np.sign(sum(part[at] for part in scaled))
        agreeing = [(w, part[at]) for w, part in zip(weights, scaled, strict=True) if np.sign(part[at]) == sign]
        merged[at] = sum(w * value for w, value in agreeing) / sum(w for w, _ in agreeing)
    return merged


def plain_karcher(deltas: list[Array], scales: list[float]) -> Array:
    """By a general minimiser over the coefficients."""
    scaled = [scale * delta.ravel() for delta, scale in zip(deltas, scales, strict=True)]
    units = np.array([part / np.linalg.norm(part) for part in scaled])
    weights = np.abs(scales) / np.abs(scales).sum()

    def spread(coefficients: Array) -> float:
        point = coefficients @ units
        return float(weights @ np.arccos(np.clip(units @ point / np.linalg.norm(point), -1, 1)) ** 2)

    found = optimize.minimize(spread, weights, tol=1e-14, method="Nelder-Mead", options={"maxiter": 20_000}).x @ units
    return (found / np.linalg.norm(found) * np.mean([np.linalg.norm(part) for part in scaled])).reshape(deltas[0].shape)


def plain_fusion(deltas: list[Array], scales: list[float], weight: Array) -> Array:
    total = np.zeros_like(weight)
    for delta, scale in zip(deltas, scales, strict=True):
        p, q = special.softmax(weight + delta, axis=-1), special.softmax(weight, axis=-1)
        importance = np.abs(delta) * special.rel_entr(p, q).sum(-1, keepdims=True)
        first, median, third = np.quantile(importance, [0.25, 0.5, 0.75], method="lower")
        total += scale * delta * (importance >= median + 1.5 * (third - first))
    return total


def plain_calibrated(deltas: list[Array], scales: list[float], floor: float) -> Array:
    scaled = [scale * delta for delta, scale in zip(deltas, scales, strict=True)]
    total = sum(scaled)
    u, sigma, vt = np.linalg.svd(total, full_matrices=False)
    for r in range(len(sigma)):
        ratios = [(u[:, r] @ total) @ (u[:, r] @ part) / ((u[:, r] @ part) ** 2).sum() for part in scaled]
        if min(ratios) > 0:
            sigma[r] /= max(floor, np.mean(ratios))
    return (u * sigma) @ vt


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize("scales", [[1.0, 1.0, 1.0], SCALES])
def test_each_is_what_it_says(shape: tuple[int, int], scales: list[float]) -> None:
    common, *deltas = draws(4, *shape)
    deltas = [delta + common for delta in deltas]
    given, plain = terms(*deltas), arrays(deltas)
    expected = [
        (sce(given), plain_sce(plain, scales, 0.1)),
        (sce(given, selected=1.0), plain_sce(plain, scales, 1.0)),
        (karcher(given), plain_karcher(plain, scales)),
        (fusion(given), plain_fusion(plain, scales, given.weight.double().numpy())),
        (calibrated(given), plain_calibrated(plain, scales, 1.0)),
        (calibrated(given, floor=0.1), plain_calibrated(plain, scales, 0.1)),
    ]
    for i, (merge, by_hand) in enumerate(expected):
        size = np.abs(by_hand).max()
        assert size > 0 and np.abs(merge(scales).double().numpy() - by_hand).max() < 3e-5 * size, i


@pytest.mark.parametrize("method", METHODS)
def test_neither_the_order_of_vectors_nor_a_common_scale_matters(method: Method) -> None:
    deltas = draws(3, 10, 14)
    merged = method(terms(*deltas))(SCALES)
    for order in permutations(range(3)):
        found = method(terms(*(deltas[i] for i in order)))([SCALES[i] for i in order])
        assert torch.allclose(found, merged, atol=1e-5)
    assert torch.allclose(method(terms(*deltas))([2.5 * scale for scale in SCALES]), 2.5 * merged, atol=1e-5)


@pytest.mark.parametrize("method", [sce, karcher, calibrated])
def test_one_vector_is_itself_and_several_equal_ones_are_one(method: Method) -> None:
    (delta,) = draws(1, 10, 14)
    assert torch.allclose(method(terms(delta))([0.7]), 0.7 * delta, atol=1e-5)
    if method is not sce:  # equal vectors vary nowhere, so that SCE selects by no reason
        assert torch.allclose(method(terms(delta, delta, delta))([0.7] * 3), 0.7 * delta, atol=1e-5)


@pytest.mark.parametrize("method", [sce, karcher, fusion])
def test_what_takes_entries_takes_every_shape(method: Callable[..., object]) -> None:
    for shape in ((30,), (1,), (3, 4, 5)):
        merged = method(terms(*draws(2, *shape)))([1.0, 1.0])
        assert merged.shape == shape and bool(merged.isfinite().all())


def test_sce_by_hand() -> None:
    a, b = torch.tensor([[2.0, 1.0, -1.0, 0.0]]), torch.tensor([[2.0, 3.0, 2.0, 4.0]])
    # Equal entries vary least; 4 stands alone, −1 is the minority's; η is 2/31 and 29/31 of what is selected.
    found = sce(terms(a, b), selected=0.75)([1.0, 1.0])
    assert torch.allclose(found, torch.tensor([[0.0, (2 * 1 + 29 * 3) / 31, 2.0, 4.0]]))


def test_two_vectors_meet_halfway_and_opposite_ones_nowhere() -> None:
    a, b = draws(2, 8, 9)
    a, b = a / a.norm(), 3 * b / b.norm()
    angle = torch.arccos((a * b).sum() / 3)
    halfway = (a + b / 3) * torch.sin(angle / 2) / torch.sin(angle)
    assert torch.allclose(karcher(terms(a, b))([1.0, 1.0]), 2 * halfway, atol=1e-6)
    assert not karcher(terms(a, a))([1.0, -1.0]).any()


def test_fusion_keeps_what_stands_out_and_no_entry_more() -> None:
    (delta,) = draws(1, 40, 50)
    delta = 0.01 * delta
    delta[3, :7] += 2.0
    found = fusion(terms(delta))([1.0])
    kept = found != 0
    assert bool(kept[3, :7].all()) and kept.double().mean() < 0.25 and torch.equal(found[kept], delta[kept])


def test_calibration_brings_back_what_is_shared_and_leaves_what_is_not() -> None:
    u, v = (torch.linalg.qr(matrix)[0] for matrix in draws(2, 12, 12))
    shared, mine, yours = (torch.outer(u[:, i], v[:, i]) for i in range(3))
    found = calibrated(terms(5 * shared + 2 * mine, 5 * shared + 3 * yours))([1.0, 1.0])
    assert torch.allclose(found, 5 * shared + 2 * mine + 3 * yours, atol=1e-5)
    apart = terms(2 * mine, 3 * yours)
    assert torch.allclose(calibrated(apart)([0.5, 2.0]), addition(apart)([0.5, 2.0]), atol=1e-5)


def test_options_are_checked_by_name() -> None:
    assert check_method("sce", {"selected": 0.2}) == {"selected": 0.2}
    for method, options in (("sce", {"selected": 0}), ("calibrated", {"floor": 0}), ("karcher", {"density": 0.5})):
        with pytest.raises(Exception, match=f"method '{method}'"):
            check_method(method, options)
