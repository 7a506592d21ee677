"""Factors between what components compute and what the stream gets."""

import pytest
import torch

from probes.capture.sums import Sums

PRE, ATTN, MLP = torch.randn(3, 2, 13, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.22, 0.22), (0.5, -1.7)])
def test_the_factors_of_a_sum_are_found(factors: tuple[float, float]) -> None:
    sums = Sums(PRE, PRE + factors[0] * ATTN + factors[1] * MLP, 1e-4)
    assert sums.ones((ATTN, MLP)).explains == (factors == (1.0, 1.0))
    fit = sums.scalars((ATTN, MLP))
    assert fit.explains and fit.carry == 1.0
    assert fit.factors == factors  # the numbers themselves, not what rounding makes of them


def test_a_scaled_stream_has_a_carry() -> None:
    fit = Sums(PRE, 1.187579 * (PRE + ATTN + MLP), 1e-4, (1.0, 1.187579)).scalars((ATTN, MLP))
    assert fit.explains and (fit.carry, *fit.factors) == (1.187579,) * 3


def test_a_factor_may_differ_by_dimension() -> None:
    scale = torch.linspace(0.5, 1.5, 48)
    sums = Sums(PRE, PRE * (2 - scale) + scale * ATTN, 1e-4)
    assert not sums.ones((ATTN,)).explains and not sums.scalars((ATTN,)).explains
    fit = sums.vectors((ATTN,))
    assert fit.explains
    assert torch.allclose(torch.as_tensor(fit.factors[0]), scale, atol=1e-5)
    assert torch.allclose(torch.as_tensor(fit.carry), 2 - scale, atol=1e-5)


def test_coarse_rounding_does_not_hide_a_wrong_factor() -> None:
    """A component of 1 % of the stream: in bfloat16 a sum without its factor is off by less than rounding may be."""
    small = 0.01 * ATTN
    post = (PRE + 0.22 * small).bfloat16().float()
    sums = Sums(PRE, post, 3e-2, (1.0, 0.22))
    assert float((PRE + small - post).norm() / post.norm()) < 3e-2
    assert not sums.ones((small,)).explains
    assert sums.scalars((small,)).factors == (0.22,)
    assert Sums(PRE, (PRE + small).bfloat16().float(), 3e-2).ones((small,)).explains


def test_what_is_no_sum_is_not_explained() -> None:
    sums = Sums(PRE, PRE * ATTN, 1e-4)
    assert not any(fit((ATTN, MLP)).explains for fit in (sums.ones, sums.scalars, sums.vectors))


def test_a_term_that_is_the_stream_is_no_component() -> None:
    post = PRE + ATTN
    assert not Sums(PRE, post, 1e-4).scalars((post,)).explains
