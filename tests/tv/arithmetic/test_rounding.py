"""What storing W + T loses."""

import pytest
import torch

from tv.arithmetic.rounding import Rounding, stored


def matrices(step: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, delta = (torch.randn(300, 400, generator=generator) for _ in range(2))
    return weight.bfloat16().float(), delta * step


def test_float32_loses_next_to_nothing_and_bfloat16_what_it_must() -> None:
    weight, delta = matrices(2e-3)
    value, lost = stored(weight, delta, torch.float32)
    assert torch.equal(value, weight + delta) and lost.ratio > 1e4
    value, lost = stored(weight, delta, torch.bfloat16)
    assert torch.equal(value, (weight + delta).bfloat16())
    error = (value.double() - (weight.double() + delta.double())).norm()
    assert lost.ratio == pytest.approx(float(delta.double().norm() / error), rel=1e-9)
    assert 1 < lost.ratio < 2  # rounding is 1.66e-3 of ‖W‖, and T is 2e-3


def test_parameters_add_up_in_squares() -> None:
    total = sum([Rounding(9.0, 1.0), Rounding(16.0, 0.0)], Rounding())
    assert total.ratio == 5.0 and Rounding(1.0, 0.0).ratio == float("inf")


def test_stochastic_rounding_is_right_on_average_and_leaves_what_fits() -> None:
    weight, delta = matrices(1e-4)  # a twentieth of a rounding step: to the nearest, it is lost
    exact = weight.double() + delta.double()

    def bias(values: list[torch.Tensor]) -> float:
        moved = torch.stack([value.double() for value in values]).mean(0) - weight.double()
        return float((moved * delta.double()).sum() / delta.double().pow(2).sum())

    chance = [stored(weight, delta, torch.bfloat16, str(i))[0] for i in range(40)]
    assert bias(chance) == pytest.approx(1, abs=0.05)
    assert bias([stored(weight, delta, torch.bfloat16)[0]]) < 0.7
    step = (chance[0].double() - exact).abs() / exact.abs().clamp(min=1e-3)
    assert step.max() <= 2**-7
    unmoved = torch.zeros_like(delta)
    assert torch.equal(stored(weight, unmoved, torch.bfloat16, "k")[0].float(), weight)
    assert torch.equal(stored(weight, delta, torch.bfloat16, "k")[0], stored(weight, delta, torch.bfloat16, "k")[0])
    assert not torch.equal(chance[0], chance[1])
    largest = torch.full((4,), torch.finfo(torch.bfloat16).max)
    near = stored(largest, torch.full((4,), 1e36), torch.bfloat16, "k")[0]
    assert torch.isfinite(near).all()
