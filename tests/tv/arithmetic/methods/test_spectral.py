"""Methods over singular directions against their formulas, in float64 with numpy's own SVD; invariants."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tests.tv.arithmetic.methods.test_elementwise import draws, terms
from tv.arithmetic.methods.spectral import deflate, iso_c, split_inside, split_outside, svd, tsv_m, wudi
from tv.arithmetic.methods.terms import METHODS, Terms

Array = NDArray[np.float64]
SHAPES = [(12, 20), (20, 12), (9, 9)]


def arrays(deltas: list[Tensor]) -> list[Array]:
    return [delta.double().numpy() for delta in deltas]


def polar(matrix: Array) -> Array:
    p, _, qt = np.linalg.svd(matrix, full_matrices=False)
    return p @ qt


def plain_tsv_m(deltas: list[Array], scales: list[float]) -> Array:
    k = min(deltas[0].shape) // len(deltas)
    us, ss, vs = [], [], []
    for delta, scale in zip(deltas, scales, strict=True):
        u, s, vt = np.linalg.svd(scale * delta, full_matrices=False)
        us, ss, vs = [*us, u[:, :k]], [*ss, s[:k]], [*vs, vt[:k].T]
    return polar(np.hstack(us)) @ np.diag(np.concatenate(ss)) @ polar(np.hstack(vs)).T


def plain_iso_c(deltas: list[Array], scales: list[float]) -> Array:
    total = sum(scale * delta for delta, scale in zip(deltas, scales, strict=True))
    return np.linalg.svd(total, compute_uv=False).mean() * polar(total)


def plain_wudi(deltas: list[Array], scales: list[float]) -> Array:
    grams = [delta.T @ delta / (delta**2).sum() for delta in deltas]
    right = sum(scale * delta @ gram for delta, scale, gram in zip(deltas, scales, grams, strict=True))
    return right @ np.linalg.pinv(sum(grams), rcond=1e-10)


def plain_deflate(deltas: list[Array], scales: list[float], fraction: float = 0.3) -> Array:
    k = round(fraction * min(deltas[0].shape))
    leading = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    total = np.zeros_like(deltas[0])
    for i, (delta, scale) in enumerate(zip(deltas, scales, strict=True)):
        u = np.linalg.qr(np.hstack([f.U[:, :k] for j, f in enumerate(leading) if j != i]))[0]
        v = np.linalg.qr(np.hstack([f.Vh[:k].T for j, f in enumerate(leading) if j != i]))[0]
        total += scale * (delta - u @ u.T @ delta @ v @ v.T)
    return total


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scales", [[1.0, 1.0], [0.7, -1.3]])
@pytest.mark.parametrize(
    ("method", "formula", "options"),
    [
        (tsv_m, plain_tsv_m, {}),
        (iso_c, plain_iso_c, {}),
        (wudi, plain_wudi, {}),
        (deflate, plain_deflate, {"fraction": 0.3}),
    ],
)
def test_formulas(
    method: Callable, formula: Callable, options: dict[str, float], scales: list[float], shape: tuple[int, int]
) -> None:
    deltas = draws(2, *shape)
    found = method(terms(*deltas), **options)(scales)
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), formula(arrays(deltas), scales), atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_split_is_by_the_left_subspace_of_w_and_adds_up(shape: tuple[int, int]) -> None:
    weight, *deltas = draws(3, *shape)
    given_ = Terms(tuple(deltas), weight)
    u = np.linalg.svd(weight.double().numpy(), full_matrices=False)[0][:, : round(0.25 * shape[0])]
    total = (0.7 * deltas[0] - 0.3 * deltas[1]).double().numpy()
    inside, outside = (run(given_, fraction=0.25)([0.7, -0.3]) for run in (split_inside, split_outside))
    assert np.allclose(inside.numpy(), u @ u.T @ total, atol=1e-5)
    assert np.allclose((inside + outside).numpy(), total, atol=1e-6)


def test_wudi_minimises_what_it_says_and_adds_what_does_not_meet() -> None:
    a, b = draws(2, 6, 20)
    deltas = arrays([a, b])

    def loss(merged: Array) -> float:
        return sum(float((((merged - delta) @ delta.T) ** 2).sum() / (delta**2).sum()) for delta in deltas)

    found = wudi(terms(a, b))([1.0, 1.0]).double().numpy()
    generator = np.random.default_rng(0)
    assert all(loss(found) < loss(found + 0.01 * generator.standard_normal(found.shape)) for _ in range(20))
    assert loss(found) < 0.01 * loss(deltas[0] + deltas[1])
    left, right = torch.cat([a[:, :10], torch.zeros(6, 10)], 1), torch.cat([torch.zeros(6, 10), b[:, 10:]], 1)
    assert torch.allclose(wudi(terms(left, right))([1.0, 0.5]), left + 0.5 * right, atol=1e-5)


def test_one_vector_twice_counts_once_for_tsv_m() -> None:
    (a,) = draws(1, 12, 20)
    u, sigma, v = svd(a, 6)
    assert torch.allclose(tsv_m(terms(a, a))([1.0, 1.0]), ((u * sigma) @ v.T).float(), atol=1e-4)


def test_iso_c_of_a_low_rank_sum_stays_in_it() -> None:
    left, right = draws(1, 15, 2)[0], draws(1, 2, 11, seed=5)[0]
    delta = left @ right
    found = iso_c(terms(delta))([1.0])
    sigma = torch.linalg.svdvals(found)
    assert torch.allclose(sigma[:2], torch.linalg.svdvals(delta)[:2].mean().expand(2), rtol=1e-4) and sigma[2] < 1e-4


def test_iso_c_decomposes_once_for_a_common_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    merge, calls = iso_c(terms(*draws(2, 8, 9))), []
    monkeypatch.setattr("tv.arithmetic.methods.spectral.svd", lambda *a: calls.append(1) or svd(*a))
    first = merge([0.6, 0.3])
    assert torch.allclose(merge([1.2, 0.6]), 2 * first, atol=1e-6) and len(calls) == 1
    merge([0.3, 0.6])
    assert len(calls) == 2


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 3), st.integers(0, 99), st.floats(0.1, 3))
def test_invariants(m: int, n: int, count: int, seed: int, factor: float) -> None:
    """A common factor of all λ comes out; the order of vectors does not matter; zero rows stay zero."""
    deltas = draws(count, m, n, seed=seed)
    for delta in deltas:
        delta[0] = 0
    weight = draws(1, m, n, seed=seed + 1000)[0]
    scales = [1.0 + 0.5 * i for i in range(count)]
    for name, method in METHODS.items():
        if name == "split-inside":
            continue  # Π_k mixes rows
        found = method(Terms(tuple(deltas), weight, "k"))(scales)
        size = 1e-4 * (1 + float(found.abs().max()))
        scaled = method(Terms(tuple(deltas), weight, "k"))([factor * scale for scale in scales])
        assert torch.allclose(scaled, factor * found, atol=size * max(1, factor)), name
        turned = method(Terms(tuple(deltas[::-1]), weight, "k"))(scales[::-1])
        assert torch.allclose(turned, found, atol=size), name
        if name != "split-outside":
            assert found[0].abs().max() < size, name


@pytest.mark.parametrize("name", ["sum", "wudi", "tsv-m", "deflate", "model-stock"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_single_vector_is_itself(name: str, shape: tuple[int, int]) -> None:
    (delta,) = draws(1, *shape)
    assert torch.allclose(METHODS[name](terms(delta))([0.7]), 0.7 * delta, atol=1e-5)
