"""Planted bases are found; through noise, no small step away from the one found comes closer."""

import pytest
import torch

from tv.matching.gauges import apart, basis_change, explains, paired_change, spread

PAIRS = torch.tensor([[0, 3], [1, 4], [2, 5]])


def _factors(noise: float) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    value, output = torch.randn(6, 30).double(), torch.randn(6, 50).double()
    planted = torch.eye(6).double() + 0.3 * torch.randn(6, 6).double()
    tuned = planted.inverse() @ value, planted.T @ output
    noisy = [side + noise * side.norm() / side.numel() ** 0.5 * torch.randn_like(side) for side in tuned]
    return value, output, *noisy, planted


def test_a_planted_basis_is_found() -> None:
    *matrices, planted = _factors(0.0)
    torch.testing.assert_close(basis_change(*matrices), planted)


def test_through_noise_no_basis_is_nearer() -> None:
    value, output, tuned_value, tuned_output, planted = _factors(0.02)

    def distance(change: torch.Tensor) -> float:
        return apart([value, output], [change @ tuned_value, change.inverse().T @ tuned_output])[0]

    found = basis_change(value, output, tuned_value, tuned_output)
    least = distance(found)
    assert least < distance(planted)
    for seed in range(20):
        torch.manual_seed(seed)
        assert least < distance(found + 1e-3 * torch.randn(6, 6).double() @ found)


def test_pairs_turn_and_scale_and_nothing_else() -> None:
    torch.manual_seed(1)
    key, query = torch.randn(6, 30).double(), torch.randn(6, 60).double()
    factor = torch.polar(torch.tensor([0.5, 1.0, 3.0]).double(), torch.tensor([0.3, 3.0, -1.0]).double())
    planted = torch.eye(6).double()
    for (first, second), w in zip(PAIRS.tolist(), factor, strict=True):
        planted[first, first] = planted[second, second] = w.real
        planted[first, second], planted[second, first] = -w.imag, w.imag
    tuned = planted.inverse() @ key, planted.T @ query
    torch.testing.assert_close(paired_change(key, query, *tuned, PAIRS), planted)
    angles = torch.arange(3.0).double()
    rotation = torch.block_diag(*[torch.eye(1).double()] * 6)
    for (first, second), angle in zip(PAIRS.tolist(), angles, strict=True):
        rotation[first, first] = rotation[second, second] = angle.cos()
        rotation[first, second], rotation[second, first] = -angle.sin(), angle.sin()
    torch.testing.assert_close(rotation @ planted, planted @ rotation)  # as position embedding rotates

    scaled = paired_change(key, query, 2 * key, -query / 2, PAIRS, turns=False)
    assert torch.equal(scaled, scaled.diagonal().diag()) and scaled.diagonal().abs().max() < 1


def test_what_is_zero_or_of_lower_rank_keeps_its_basis() -> None:
    zero = torch.zeros(6, 30).double()
    assert torch.equal(basis_change(zero, zero, zero, zero), torch.eye(6).double())
    assert torch.equal(paired_change(zero, zero, zero, zero, PAIRS), torch.eye(6).double())
    assert apart([zero], [zero]) == (0.0, 1.0)
    assert not explains(0.0, 0.0) and explains(1.0, 0.1) and not explains(1.0, 0.5)


def test_the_spread_of_rounding_is_that_of_draws() -> None:
    torch.manual_seed(2)
    rows, change = torch.randn(6, 4000).double(), torch.randn(6, 6).double()
    error = 1e-3 * rows * torch.randn_like(rows)
    measured = float((change @ error).norm() / (change @ rows).norm()) / 1e-3
    assert spread(change, rows) == pytest.approx(measured, rel=0.02)
    assert spread(torch.eye(6).double(), rows) == pytest.approx(1)
