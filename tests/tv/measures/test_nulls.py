"""Every closed form against simulation, on every side, wide, tall and square."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tv
from tests.pairs import build_pair
from tv.measures.decomposition import decompose, energies_along
from tv.measures.nulls import NULLS, Draws, Kept, null

SHAPES = [(18, 30), (30, 18), (20, 20)]
DRAWS = 1500


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _rotated(delta: Tensor, generator: torch.Generator) -> Tensor:
    u, v = (torch.linalg.qr(_normal(d, d, generator=generator))[0] for d in delta.shape)
    return u @ delta @ v


def _same_rows(delta: Tensor, generator: torch.Generator) -> Tensor:
    x = _normal(*delta.shape, generator=generator)
    return delta.norm(dim=1, keepdim=True) * x / x.norm(dim=1, keepdim=True)


def _entries(delta: Tensor, generator: torch.Generator) -> Tensor:
    return _normal(*delta.shape, generator=generator)


def _shuffled(delta: Tensor, generator: torch.Generator) -> Tensor:
    return delta.flatten()[torch.randperm(delta.numel(), generator=generator)].view_as(delta)


SIMULATED: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "rotation": _rotated,
    "gaussian": _entries,
    "row_scale": _same_rows,
    "shuffle": _shuffled,
}


def _case(m: int, n: int) -> tuple[Tensor, Tensor, list[Kept]]:
    """A weight with a decaying spectrum, a T whose rows and singular values are very unequal, and some subspaces."""
    generator = torch.Generator().manual_seed(m * 100 + n)
    r = min(m, n)
    u, v = (torch.linalg.qr(_normal(d, d, generator=generator))[0][:, :r] for d in (m, n))
    weight = u * torch.logspace(0, -1, r, dtype=torch.float64) @ v.T
    rows = torch.logspace(0, -1, m, dtype=torch.float64)[:, None]
    delta = rows * _normal(m, 3, generator=generator) @ _normal(3, n, generator=generator)
    kept = [Kept("left", 5, n), Kept("right", m, 7), Kept("two_sided", 6, 6), Kept("left", r - 1, n)]
    return weight, delta, kept


def _cases() -> Iterator[tuple[str, tuple[int, int]]]:
    yield from ((name, shape) for name in NULLS for shape in SHAPES)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("name", "shape"), _cases())
def test_mean_and_variance_are_those_of_a_simulation(name: str, shape: tuple[int, int]) -> None:
    weight, delta, kept = _case(*shape)
    decomposition = decompose(weight)
    drawn = Draws(DRAWS, seed=1)
    moments = NULLS[name](decomposition, delta, energies_along(decomposition, delta), kept, drawn)
    generator = torch.Generator().manual_seed(2)
    simulated = [energies_along(decomposition, SIMULATED[name](delta, generator)) for _ in range(DRAWS)]
    for each, (mean, variance) in zip(kept, moments, strict=True):
        shares = torch.tensor([each.energy(energies) for energies in simulated], dtype=torch.float64)
        both = 2 if name == "shuffle" else 1  # that null is an estimate too
        assert abs(float(shares.mean()) - mean) < 4 * math.sqrt(both * variance / DRAWS) + 1e-12
        centred = (shares - shares.mean()).pow(2)
        error = float(centred.std()) / math.sqrt(DRAWS)
        assert abs(float(centred.mean()) - variance) < 4.5 * math.sqrt(both) * error + 1e-12


def test_the_row_null_sees_rows_that_the_rotation_null_cannot() -> None:
    """A T whose large rows are where W's leading directions lie: aligned, but for no more than its row norms."""
    m, n = 40, 60
    weight = torch.zeros(m, n, dtype=torch.float64)
    weight[:10, :10] = torch.eye(10) * 10
    weight += 0.01 * torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    scale = torch.ones(m, 1, dtype=torch.float64)
    scale[:10] = 10
    delta = scale * _normal(m, n, generator=torch.Generator().manual_seed(1))
    decomposition = decompose(weight)
    energies, kept = energies_along(decomposition, delta), [Kept("left", 10, n)]
    share = kept[0].energy(energies)
    for name, significant in (("rotation", True), ("row_scale", False)):
        mean, variance = NULLS[name](decomposition, delta, energies, kept, Draws())[0]
        assert (abs(share - mean) / math.sqrt(variance) > 4) == significant


def test_shuffling_is_seeded() -> None:
    weight, delta, kept = _case(18, 30)
    decomposition = decompose(weight)
    energies = energies_along(decomposition, delta)
    first, again, other = (NULLS["shuffle"](decomposition, delta, energies, kept, Draws(5, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_no_tuning_has_a_null_without_nan() -> None:
    weight, delta, kept = _case(18, 30)
    decomposition = decompose(weight)
    zero = torch.zeros_like(delta)
    for each_null in NULLS.values():
        moments = each_null(decomposition, zero, energies_along(decomposition, zero), kept, Draws(3))
        assert all(math.isfinite(value) for pair in moments for value in pair)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_row_null_of_one_cut_does_not_depend_on_the_others(shape: tuple[int, int]) -> None:
    weight, delta, kept = _case(*shape)
    decomposition = decompose(weight)
    energies = energies_along(decomposition, delta)
    together = NULLS["row_scale"](decomposition, delta, energies, kept, Draws())
    for each, moments in zip(kept, together, strict=True):
        assert NULLS["row_scale"](decomposition, delta, energies, [each], Draws())[0] == pytest.approx(moments)


def test_another_null_is_one_decorated_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    list(NULLS)
    monkeypatch.setattr(NULLS, "_entries", dict(NULLS._entries))

    @null("half")
    def half(decomposition, delta, energies, kept, draws):
        return [(0.5, 0.01) for _ in kept]

    frame = tv.ssa(*build_pair(tmp_path, "llama"), null="half")
    assert set(frame.null) == {"half"} and frame.ssa_null.pow(2).sub(0.5).abs().max() < 1e-9
    with pytest.raises(tv.InputError, match="no null 'whole'; there are half, rotation, "):
        tv.ssa("a", "b", null="whole")
