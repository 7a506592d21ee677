"""Products by the quicker library."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tv.runtime import products
from tv.runtime.products import LEAST, SIDE, SMALL_WORK, is_quicker, linear

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
@pytest.mark.parametrize("shape", [(97,), (3, 33), (2, 3, 16), (18,)])
def test_the_same_products_of_any_layout(
    always: list[tuple[int, ...]], shape: tuple[int, ...], turned: bool, biased: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(*shape, 1200)[..., ::3] / 20  # not contiguous
    weight = torch.randn(400, 260).T if turned else torch.randn(260, 400)
    bias = torch.randn(260) if biased else None
    found, wanted = linear(x, weight, bias), functional.linear(x, weight, bias)
    assert _near(found, wanted)
    assert always == [x.shape]
    found.add_(1)  # no view of what was made for more rows
    assert _near(found, wanted + 1)


def test_gradients_of_what_is_multiplied_and_of_weights(always: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 33, 400) / 20, torch.randn(260, 400)
    grads = []
    for product in (linear, functional.linear):
        entering = x.clone().requires_grad_()
        made = product(entering, weight)
        made += 1  # as some models change what a layer gives
        (grad,) = torch.autograd.grad(made.sin().sum(), entering)
        grads.append(grad)
    assert _near(*grads)
    assert always == [(3, 33, 400), (3, 33, 260)]  # forward and backward

    weight.requires_grad_()  # a model that is trained
    (trained,) = torch.autograd.grad(linear(x, weight).sum(), weight)
    assert torch.equal(trained, torch.autograd.grad(functional.linear(x, weight).sum(), weight)[0])
    assert len(always) == 2


def test_what_it_is_not_for_goes_the_usual_way(always: list[tuple[int, ...]]) -> None:
    small, few, several = torch.randn(LEAST // 50, 49), torch.randn(1000, 1000), torch.randn(20, 1000)
    middle = torch.randn(160, 160)
    n = -(-SMALL_WORK // middle.numel())
    usual = [
        (torch.randn(100, 49), small),
        (torch.randn(5000, SIDE), torch.randn(LEAST // SIDE, SIDE)),
        (torch.randn(n - 1, 160), middle),
        (several[:3], few),  # of few rows the time is that of reading the matrix
        (several[:15], few.T),
        (several.double(), few.double()),
        (several.bfloat16(), few.bfloat16()),
    ]
    for x, weight in usual:
        assert torch.equal(linear(x, weight), functional.linear(x, weight))
    assert linear(several.to("meta"), few.to("meta")).is_meta
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(several, few).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(several, few), functional.linear(several, few))
    assert always == []
    for x, weight in ((several[:4], few), (several[:16], few.T), (torch.randn(n, 160), middle)):
        assert _near(linear(x, weight), functional.linear(x, weight))
    assert always == [(4, 1000), (16, 1000), (n, 160)]


class _Own(torch.Tensor):
    """Somebody else's, which may multiply otherwise."""


@pytest.mark.parametrize(
    "bias",
    [
        torch.randn(800)[::2],  # oneDNN would read the entries between
        torch.randn(1).expand(400),
        torch.tensor(2.0),
        torch.randn(1),
        torch.randn(33, 400),
        torch.randn(400).as_subclass(_Own),
    ],
)
def test_a_bias_of_another_kind_is_added_by_torch(always: list[tuple[int, ...]], bias: torch.Tensor) -> None:
    x, weight = torch.randn(33, 300), torch.randn(400, 300)
    assert torch.equal(linear(x, weight, bias), functional.linear(x, weight, bias))
    assert always == []


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(5, 200_000), torch.ones(200_000)),
        (torch.ones(900, 10), torch.ones(20_000, 10)),
        (torch.ones(33, 400), torch.ones(300, 400).to_sparse_csr()),
        (torch.ones(33, 400), torch.ones(300, 400).as_subclass(_Own)),
        (torch.ones(30, 400), torch.ones(300, 600)[:, :400]),  # a part, for too few rows to copy it
    ],
)
def test_a_matrix_of_another_kind_is_torchs(
    always: list[tuple[int, ...]], x: torch.Tensor, weight: torch.Tensor
) -> None:
    assert torch.equal(linear(x, weight), functional.linear(x, weight))
    assert always == []


@pytest.mark.parametrize(
    ("x", "weight"), [((), (1000, 1000)), ((5, 0), (100_000, 1)), ((9, 400), (2, 300, 400)), ((9, 40), (1000, 1000))]
)
def test_what_does_not_fit_is_refused_in_torchs_words(
    always: list[tuple[int, ...]], x: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    for product in (functional.linear, linear):
        with pytest.raises(RuntimeError):
            product(torch.ones(x), torch.ones(weight))


def test_transforms_of_torch_see_a_product_as_any_other(always: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 20, 400) / 20, torch.randn(300, 400)

    def both(transform: Callable[[Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]) -> None:
        assert _near(*(transform(lambda x, each=each: each(x, weight)) for each in (linear, functional.linear)))

    both(lambda product: torch.func.grad(lambda x: product(x).sum())(x))
    both(lambda product: torch.func.vmap(product)(x))
    both(lambda product: torch.func.jvp(product, (x,), (x,))[1])
    with forward_ad.dual_level():
        both(lambda product: forward_ad.unpack_dual(product(forward_ad.make_dual(x, x))).tangent)
    both(lambda product: torch.compile(product, backend="eager")(x))
    both(lambda product: torch.jit.trace(product, x, check_trace=False)(x))
    assert always == []
    with FlopCounterMode(display=False) as counted:
        linear(x, weight)
    assert counted.get_total_flops() == 2 * x.numel() * len(weight)
    # Gradients of several at once: forward it is one product as any.
    x.requires_grad_()
    both(lambda product: torch.autograd.grad(product(x).sum((0, 1)), x, torch.eye(300)[:3], is_grads_batched=True)[0])


def test_few_numbers_of_rows_are_made_for() -> None:
    numbers = [products._rounded(rows) for rows in range(1, 4097)]
    assert len({*numbers}) < 50
    assert all(rows <= full < rows + max(8, rows / 4 + 1) for rows, full in enumerate(numbers, 1))


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


@pytest.mark.parametrize(
    "part", [(slice(None), slice(50, 450)), (slice(20, 280), slice(None)), (slice(None, None, 2), slice(None))]
)
def test_a_part_of_a_matrix_is_copied_first(
    always: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, part: tuple[slice, slice]
) -> None:
    """Else oneDNN takes a hundred times as long."""
    given: list[torch.Tensor] = []
    by_onednn = torch.ops.mkldnn._linear_pointwise

    def seen(x: torch.Tensor, weight: torch.Tensor, *rest: object) -> torch.Tensor:
        given.append(weight)
        product: torch.Tensor = by_onednn(x, weight, *rest)
        return product

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", seen)
    torch.manual_seed(0)
    for whole in (torch.randn(520, 600), torch.randn(600, 520).T):
        weight = whole[part]
        x = torch.randn(70, weight.shape[1]) / 20
        assert _near(linear(x, weight), functional.linear(x, weight))
    assert all(weight.is_contiguous() or weight.T.is_contiguous() for weight in given)
    assert len(given) == len(always) == 2
