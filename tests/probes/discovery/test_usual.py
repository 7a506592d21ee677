"""Whitening, against an inverse root of the whole covariance, and its shrinkage against the estimator's own sums."""

from __future__ import annotations

import pytest
import torch

from probes.discovery.usual import Usual


def _shrunk(states: torch.Tensor) -> torch.Tensor:
    """The shrunk covariance of (n, d) states, term by term."""
    n, d = states.shape
    centred = (states - states.mean(0)).double()
    s = centred.T @ centred / n
    level = s.trace() / d
    target = level * torch.eye(d, dtype=torch.float64)
    noise = sum(float((torch.outer(row, row) - s).square().sum()) for row in centred) / n**2
    a = min(noise / float((s - target).square().sum()), 1.0)
    return (1 - a) * s + a * target


@pytest.mark.parametrize("n", [40, 5])  # more states than dimensions, and fewer
def test_whitening_is_the_inverse_root_of_the_shrunk_covariance(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    mix = torch.randn(11, 11, generator=generator)
    states = torch.randn(2, n, 11, generator=generator) @ mix + 3
    means = torch.randn(2, 11, generator=generator)
    found = Usual.of(states).whitened(means)
    for own, mean, white in zip(states, means, found, strict=True):
        cov = _shrunk(own)
        values, vectors = torch.linalg.eigh(cov)
        root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
        scale = (torch.cov(own.T.double(), correction=0).trace() / 11).sqrt()
        torch.testing.assert_close(white.double(), scale * root @ mean.double(), atol=1e-3, rtol=1e-3)


def test_what_lies_along_the_mean_state_is_taken_off_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    usual = Usual.of(torch.randn(2, 30, 7, generator=generator) + 5)
    means = torch.randn(2, 7, generator=generator)
    left = usual.without_mean(means)
    assert (left * usual.mean).sum(1).abs().max() < 1e-4
    torch.testing.assert_close(usual.without_mean(left), left)
    torch.testing.assert_close(usual.without_mean(means + 4 * usual.mean), left, atol=1e-4, rtol=1e-4)
