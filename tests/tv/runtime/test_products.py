"""Products by the quicker library."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from tv.runtime import products
from tv.runtime.products import LEAST, is_quicker, linear

#: How far sums in another order may lie apart, as a share of the largest value.
NEAR = 1e-6


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """By oneDNN on any processor, and what went through it."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch has no oneDNN here")
    seen: list[tuple[int, ...]] = []
    by_onednn = products._by_onednn

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return by_onednn(x, weight, bias)

    monkeypatch.setattr(products, "is_quicker", lambda: True)
    monkeypatch.setattr(products, "_by_onednn", counted)
    yield seen


def _near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= NEAR * wanted.abs().max().clamp(min=1))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("shape", [(96,), (3, 32), (2, 3, 16)])
def test_the_same_products_of_any_layout(
    always: list[tuple[int, ...]], shape: tuple[int, ...], turned: bool, biased: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(*shape, 600)[..., ::3] / 14  # not contiguous
    weight = torch.randn(200, 160).T if turned else torch.randn(160, 200)
    bias = torch.randn(160) if biased else None
    assert _near(linear(x, weight, bias), functional.linear(x, weight, bias))
    assert always == [x.shape]


def test_gradients_of_what_is_multiplied_and_of_weights(always: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 50, 100) / 10, torch.randn(120, 100)
    grads = []
    for product in (linear, functional.linear):
        entering = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(product(entering, weight).sin().sum(), entering)
        grads.append(grad)
    assert _near(*grads)
    assert always == [(4, 50, 100), (4, 50, 120)]  # forward and backward

    weight.requires_grad_()  # a model that is trained
    (trained,) = torch.autograd.grad(linear(x, weight).sum(), weight)
    assert torch.equal(trained, torch.autograd.grad(functional.linear(x, weight).sum(), weight)[0])
    assert len(always) == 2


def test_what_it_is_not_for_goes_the_usual_way(always: list[tuple[int, ...]]) -> None:
    small, large = torch.randn(2, 10), torch.randn(LEAST // 100, 10)
    weight = torch.randn(100, 10)
    assert torch.equal(linear(small, weight), functional.linear(small, weight))
    assert torch.equal(linear(large.double(), weight.double()), functional.linear(large.double(), weight.double()))
    assert linear(large.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    assert linear(large.to("meta"), weight.to("meta")).is_meta
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(large, weight).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(large, weight), functional.linear(large, weight))
    wide = torch.randn(1000, 1000)
    linear(torch.randn(1, 1000), wide), linear(torch.randn(15, 1000), wide.T)  # no fewer reads of the matrix
    assert always == []
    linear(torch.randn(2, 1000), wide), linear(torch.randn(16, 1000), wide.T)
    assert always == [(2, 1000), (16, 1000)]
    linear(large, weight)
    assert always[2:] == [large.shape]


@pytest.mark.parametrize(
    ("said", "capability", "expected"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel", "AVX512", False),
    ],
)
def test_where_it_is_quicker(monkeypatch: pytest.MonkeyPatch, said: str, capability: str, expected: bool) -> None:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        pytest.skip("torch has one library alone here")
    monkeypatch.setattr(products.Path, "exists", lambda _: False)
    monkeypatch.setattr(products.platform, "processor", lambda: said)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    is_quicker.cache_clear()
    try:
        assert is_quicker() is expected
    finally:
        is_quicker.cache_clear()
