"""Elementwise methods against their formulas, written out in float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tv.arithmetic.methods import terms as of_terms
from tv.arithmetic.methods.elementwise import addition, dare, mean, model_stock, ties
from tv.arithmetic.methods.terms import Method, Terms


def terms(*deltas: Tensor, key: str = "0 here -1") -> Terms:
    return Terms(deltas, torch.zeros_like(deltas[0]), key)


def draws(n: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(n)]


def plain_ties(deltas: list[Tensor], scales: list[float], density: float) -> NDArray[np.float64]:
    """Entry by entry."""
    trimmed = []
    for delta in deltas:
        flat = delta.double().numpy().ravel()
        kept = np.argsort(-np.abs(flat))[: int(np.ceil(density * flat.size))]
        trimmed.append(np.where(np.isin(np.arange(flat.size), kept), flat, 0.0))
    result = np.zeros(trimmed[0].size)
    for i in range(result.size):
        values = [scale * t[i] for scale, t in zip(scales, trimmed, strict=True)]
        sign = np.sign(sum(values))
        agreeing = [value for value in values if value and np.sign(value) == sign]
        result[i] = np.mean(agreeing) if agreeing else 0.0
    return result.reshape(deltas[0].shape)


def test_sum_and_mean() -> None:
    a, b = draws(2, 5, 7)
    assert torch.allclose(addition(terms(a, b))([0.7, -0.3]), 0.7 * a - 0.3 * b)
    assert torch.allclose(mean(terms(a, b))([2.0, 4.0]), a + 2 * b)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("scales", [[1.0, 1.0, 1.0], [0.7, 1.3, -0.5]])
def test_ties_is_trim_elect_and_disjoint_mean(density: float, scales: list[float]) -> None:
    deltas = draws(3, 9, 11)
    found = ties(terms(*deltas), density=density)(scales)
    assert np.allclose(found.numpy(), plain_ties(deltas, scales, density), atol=1e-6)


def test_ties_by_hand() -> None:
    a, b = torch.tensor([4.0, -3.0, 1.0, 0.0]), torch.tensor([2.0, 5.0, -1.0, 6.0])
    assert ties(terms(a, b), density=1.0)([1.0, 1.0]).tolist() == [3.0, 5.0, 0.0, 6.0]
    assert ties(terms(a, b), density=0.5)([1.0, 1.0]).tolist() == [4.0, 5.0, 0.0, 6.0]
    assert ties(terms(b), density=0.5)([-2.0]).tolist() == [0.0, -10.0, 0.0, -12.0]  # a single negative λ stays one


def test_ties_keeps_no_more_than_it_says_where_entries_are_equal() -> None:
    found = ties(terms(torch.ones(10, 10)), density=0.2)([1.0])
    assert int((found != 0).sum()) == 20


def test_dare_drops_and_rescales_without_a_bias() -> None:
    (delta,) = draws(1, 200, 300)
    found = dare(terms(delta), density=0.3)([1.0])
    kept = found != 0
    assert kept.double().mean() == pytest.approx(0.3, abs=0.01)
    assert torch.allclose(found[kept], delta[kept] / 0.3)
    many = torch.stack([dare(terms(delta, key=str(i)), density=0.3)([1.0]) for i in range(60)]).mean(0)
    assert float((many - delta).norm() / delta.norm()) == pytest.approx(((1 - 0.3) / 0.3 / 60) ** 0.5, rel=0.05)
    assert torch.equal(dare(terms(delta), density=1.0)([0.7]), addition(terms(delta))([0.7]))


def test_dares_masks_depend_on_key_and_vector_alone() -> None:
    a, b = draws(2, 40, 50)
    both = dare(terms(a, b))([1.0, 1.0])
    torch.rand(3)  # the global generator has no say
    assert torch.equal(dare(terms(b, a))([1.0, 1.0]), both)
    assert torch.allclose(dare(terms(a))([1.0]) + dare(terms(b))([1.0]), both)
    assert not torch.equal(dare(terms(a))([1.0]) != 0, dare(terms(b))([1.0]) != 0)
    assert not torch.equal(dare(terms(a, key="1 here -1"))([1.0]), dare(terms(a))([1.0]))


def test_model_stock_is_its_formula() -> None:
    common, *own = draws(4, 30, 40)
    deltas = [common + 0.8 * one for one in own]
    cosines = [float((a * b).sum() / (a.norm() * b.norm())) for i, a in enumerate(deltas) for b in deltas[i + 1 :]]
    cosine = sum(cosines) / 3
    share = 3 * cosine / (1 + 2 * cosine)
    assert 0.5 < share < 0.95
    expected = share * (0.5 * deltas[0] + 1.0 * deltas[1] + 2.0 * deltas[2]) / 3
    assert torch.allclose(model_stock(terms(*deltas))([0.5, 1.0, 2.0]), expected, atol=1e-5)


def test_model_stock_at_its_ends() -> None:
    (a,) = draws(1, 6, 6)
    assert torch.allclose(model_stock(terms(a, a))([1.0, 1.0]), a, atol=1e-6)  # no angle: all of the mean
    assert model_stock(terms(a, -a))([1.0, 1.0]).abs().max() == 0  # opposite: back to the base
    assert torch.allclose(model_stock(terms(a, -a))([1.0, -1.0]), a, atol=1e-6)  # turned round
    assert torch.allclose(model_stock(terms(a))([0.4]), 0.4 * a)


@pytest.mark.parametrize("method", [ties, dare])
def test_a_few_entries_at_a_time_give_the_same_bits(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    given = terms(*draws(3, 37, 11))
    whole = method(given, density=0.3)([0.7, -0.4, 1.1])
    monkeypatch.setattr(of_terms, "_PIECE", 29)
    assert torch.equal(method(given, density=0.3)([0.7, -0.4, 1.1]).view(torch.int32), whole.view(torch.int32))


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["plain", "of few sizes", "mostly zero", "tiny", "wide"])
def test_the_largest_stay_and_of_one_size_the_first(kind: str, density: float) -> None:
    (delta,) = draws(1, 613)
    change = {
        "of few sizes": lambda: (2 * delta).round(),
        "mostly zero": lambda: delta * (delta > 1.5),
        "tiny": lambda: delta * 1e-41,
        "wide": lambda: delta.sign() * (10 * delta).exp(),
    }
    delta = change.get(kind, lambda: delta)()
    order = np.argsort(-delta.abs().numpy(), kind="stable")[: int(np.ceil(density * 613))]
    expected = torch.zeros(613)
    expected[order.copy()] = delta[order.copy()]
    assert torch.equal(ties(terms(delta), density=density)([1.0]), expected)
