"""SSA, k and nulls against a float64 SVD, planted cases, and simulation."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings, strategies as st

from tv.measures.decomposition import (
    decompose,
    eigenvectors,
    energies_along,
    gram,
    k_of,
    leading_eigenvectors,
    left_basis,
)
from tv.measures.ssa import CEILING, Cut, align, curves

SHAPES = [(40, 64), (64, 40), (48, 48), (4, 90), (90, 4), (1, 30), (30, 1)]
SPECTRA = ["flat", "power law", "low rank"]


def _weight(m: int, n: int, spectrum: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    r = min(m, n)
    u = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))[0][:, :r]
    v = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0][:, :r]
    i = torch.arange(1, r + 1, dtype=torch.float64)
    sigma = {"flat": 1 + 0.01 / i, "power law": i**-1.0, "low rank": 0.3**i}[spectrum]
    return (u * sigma @ v.T).float()


def _random(m: int, n: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed)) * 1e-3


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_a_float64_svd(shape: tuple[int, int], spectrum: str) -> None:
    m, n = shape
    weight, delta = _weight(m, n, spectrum), _random(m, n)
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    t = delta.double()
    rows = align(decompose(weight), delta, (0.01, 0.05, 0.1))
    assert len(rows) == 12
    for row in rows:
        if math.isnan(row.epsilon):
            k = min(m, n, max(1, round(0.1 * {"left": m, "right": n, "two_sided": min(m, n)}[row.side])))
        else:
            errors = [float((sigma[j:] ** 2).sum().sqrt() / sigma.norm()) for j in range(len(sigma) + 1)]
            k = next(j for j in range(len(errors)) if errors[j] <= row.epsilon)
        left, right = u[:, :k], vh[:k].T
        projected = {"left": left.T @ t, "right": t @ right, "two_sided": left.T @ t @ right}[row.side]
        p = {"left": k / m, "right": k / n, "two_sided": k * k / (m * n)}[row.side]
        assert row.k == k
        assert row.ssa == pytest.approx(float(projected.norm() / t.norm()), abs=1e-4)
        assert row.ssa_null == pytest.approx(math.sqrt(p))
        assert row.at_ceiling == (p > CEILING)
        if p < 1:
            assert row.kappa == pytest.approx((row.ssa**2 - p) / (1 - p))


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_a_planted_tuning_vector_inside_scores_1_and_outside_0(shape: tuple[int, int]) -> None:
    m, n = shape
    weight = _weight(m, n, "low rank")
    decomposition = decompose(weight)
    k = k_of(decomposition, 0.05)
    u, _, vh = torch.linalg.svd(weight.double())
    noise = _random(m, n).double()
    inside = u[:, :k] @ u[:, :k].T @ noise @ vh[:k].T @ vh[:k]
    outside = u[:, k:] @ u[:, k:].T @ noise @ vh[k:].T @ vh[k:]
    for delta, expected in ((inside, 1.0), (outside, 0.0)):
        rows = align(decomposition, delta.float(), (0.05,))
        assert [row.ssa for row in rows[:3]] == pytest.approx([expected] * 3, abs=1e-3)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES[:5])
def test_a_random_tuning_vector_scores_its_null(shape: tuple[int, int], spectrum: str) -> None:
    """The mean of SSA² over draws lies within 4 standard errors of p."""
    decomposition = decompose(_weight(*shape, spectrum))
    draws = [align(decomposition, _random(*shape, seed=s), (0.05, 0.1)) for s in range(60)]
    for rows in zip(*draws, strict=True):
        shares = torch.tensor([row.ssa**2 for row in rows], dtype=torch.float64)
        error = float(shares.std()) / math.sqrt(len(rows))
        assert abs(float(shares.mean()) - rows[0].ssa_null ** 2) <= 4 * error + 1e-9


@pytest.mark.thorough
def test_z_is_standard_normal_under_rotations_of_one_spectrum() -> None:
    """The closed-form variance, for each side, by simulation with a T of low participation ratio."""
    m, n, draws = 24, 36, 800
    decomposition = decompose(_weight(m, n, "power law"))
    sigma = torch.logspace(0, -1.5, m)
    generator = torch.Generator().manual_seed(5)
    z: dict[tuple[str, bool], list[float]] = {}
    for _ in range(draws):
        u = torch.linalg.qr(torch.randn(m, m, generator=generator))[0]
        v = torch.linalg.qr(torch.randn(n, n, generator=generator))[0]
        for row in align(decomposition, u * sigma @ v[:, :m].T, (0.3,)):
            z.setdefault((row.side, math.isnan(row.epsilon)), []).append(row.ssa_z)
    for values in z.values():
        found = torch.tensor(values)
        assert abs(float(found.mean())) < 4 / math.sqrt(draws)
        assert float(found.std()) == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("shape", [(6, 200), (200, 6)])
def test_a_thin_matrix_keeps_no_more_directions_than_it_has(shape: tuple[int, int]) -> None:
    """A head's slice: 10 % of its long side is more than its rank, and the null must know."""
    decomposition, long = decompose(_weight(*shape, "flat")), "right" if shape[0] < shape[1] else "left"
    z = []
    for seed in range(200):
        rows = align(decomposition, _random(*shape, seed=seed), ())
        row = next(row for row in rows if row.side == long)
        assert row.k == 6 and row.ssa_null**2 == pytest.approx(6 / 200)
        z.append(row.ssa_z)
    assert abs(float(torch.tensor(z).mean())) < 4 / math.sqrt(len(z))
    assert float(torch.tensor(z).std()) == pytest.approx(1, abs=0.2)


def test_a_matrix_of_low_rank_keeps_no_more_directions_than_it_has() -> None:
    weight = torch.zeros(40, 60)
    weight[0, 0], weight[1, 1] = 1.0, 0.5
    draws = [align(weight, _random(40, 60, seed=s), ()) for s in range(100)]
    for rows in zip(*draws, strict=True):
        assert {row.k for row in rows} == {2}
        z = torch.tensor([row.ssa_z for row in rows])
        assert abs(float(z.mean())) < 4 * float(z.std()) / math.sqrt(len(z))


def test_a_matrix_and_its_decomposition_are_taken_alike() -> None:
    weight, delta = _weight(12, 20, "power law"), _random(12, 20)
    whole, cut = align(weight, delta), align(decompose(weight), delta)
    assert [row.ssa for row in whole] == [row.ssa for row in cut]


def test_one_sided_z_is_the_textbook_variance() -> None:
    """2p(1−p)/(m+2) · (m/PR − 1)/(m − 1), written out."""
    weight, delta = _weight(30, 50, "power law"), _random(30, 50)
    row = next(r for r in align(decompose(weight), delta, (0.2,)) if r.side == "left" and r.epsilon == 0.2)
    s = torch.linalg.svdvals(delta.double()) ** 2
    participation = float(s.sum() ** 2 / (s**2).sum())
    p = row.k / 30
    variance = 2 * p * (1 - p) / 32 * (30 / participation - 1) / 29
    assert row.ssa_z == pytest.approx((row.ssa**2 - p) / math.sqrt(variance), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_invariants(m: int, n: int, seed: int, scale: float) -> None:
    """SSA lies in [0, 1], grows as ε falls, and neither the size of T nor a rotation of both spaces changes it."""
    weight, delta = _random(m, n, seed) * 1e3, _random(m, n, seed + 1) * 1e3
    rows = align(decompose(weight), delta, (0.01, 0.1, 0.3))
    assert all(0 <= row.ssa <= 1 for row in rows)
    for side in ("left", "right", "two_sided"):
        swept = [row for row in rows if row.side == side and not math.isnan(row.epsilon)]
        assert swept[0].k >= swept[1].k >= swept[2].k
        assert swept[0].ssa + 1e-9 >= swept[1].ssa >= swept[2].ssa - 1e-9
    scaled = align(decompose(weight), delta * scale, (0.01, 0.1, 0.3))
    assert [r.ssa for r in scaled] == pytest.approx([r.ssa for r in rows], abs=1e-5)
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0] for d in (m, n))
    turned = align(decompose(u @ weight.double() @ v), u @ delta.double() @ v, (0.01, 0.1, 0.3))
    same_k = [(a, b) for a, b in zip(rows, turned, strict=True) if a.k == b.k]
    assert len(same_k) >= len(rows) - 3  # a tail within rounding of ε may fall on either side
    assert [a.ssa for a, _ in same_k] == pytest.approx([b.ssa for _, b in same_k], abs=1e-4)


def test_no_tuning_has_no_alignment_and_the_null_of_the_shape() -> None:
    moved = align(decompose(_weight(20, 30, "flat")), _random(20, 30), (0.05,))
    for row, other in zip(align(decompose(_weight(20, 30, "flat")), torch.zeros(20, 30), (0.05,)), moved, strict=True):
        assert all(math.isnan(value) for value in (row.ssa, row.kappa, row.ssa_z))
        assert row.ssa_null == pytest.approx(other.ssa_null) and row.at_ceiling == other.at_ceiling


def test_a_matrix_of_zeros_has_finite_numbers() -> None:
    for row in align(decompose(torch.zeros(20, 30)), _random(20, 30), (0.05,)):
        assert math.isfinite(row.ssa) and math.isfinite(row.ssa_z)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_left_basis_is_orthonormal_and_spans_the_subspace(shape: tuple[int, int]) -> None:
    weight = _weight(*shape, "power law")
    decomposition = decompose(weight)
    basis = left_basis(decomposition, 7)
    u = torch.linalg.svd(weight.double())[0][:, :7].float()
    assert torch.allclose(basis.T @ basis, torch.eye(7), atol=1e-5)
    assert torch.allclose(basis @ basis.T, u @ u.T, atol=1e-4)


def test_pieces_of_the_long_side_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, delta = _weight(20, 90, "power law"), _random(20, 90)
    whole = align(decompose(weight), delta)
    monkeypatch.setattr("tv.measures.decomposition._CHUNK", 7)
    assert [row.ssa for row in align(decompose(weight), delta)] == pytest.approx([row.ssa for row in whole])


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_rules_by_name(shape: tuple[int, int]) -> None:
    """A share τ of the energy is the tail at √(1 − τ); a fixed share is a share of each side's own dimension."""
    decomposition = decompose(_weight(*shape, "power law"))
    energy = decomposition.sigma.pow(2)
    for kept in Cut("energy", 0.9).keeps(decomposition)[:2]:
        k = min(kept.left, kept.right)
        assert float(energy[:k].sum() / energy.sum()) >= 0.9 > float(energy[: k - 1].sum() / energy.sum())
        assert kept in Cut("tail", math.sqrt(0.1)).keeps(decomposition)
    left, right, both = Cut("fixed", 0.25).keeps(decomposition)
    assert (left.left, right.right) == (round(0.25 * shape[0]), round(0.25 * shape[1]))
    assert both.left == both.right == round(0.25 * min(shape))


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_curve_passes_through_every_cut_and_has_no_area_at_the_null(shape: tuple[int, int]) -> None:
    decomposition = decompose(_weight(*shape, "power law"))
    delta = _random(*shape)
    energies = energies_along(decomposition, delta)
    found = {curve.side: curve for curve in curves(decomposition, energies, ("left", "right", "two_sided"))}
    for row in align(decomposition, delta, (0.05, 0.3)):
        curve = found[row.side]
        at = curve.k.index(row.k)
        assert (curve.ssa[at], curve.ssa_null[at]) == pytest.approx((row.ssa, row.ssa_null), abs=1e-9)
    areas = {side: [] for side in found}
    for seed in range(40):
        drawn = energies_along(decomposition, _random(*shape, seed=seed))
        for curve in curves(decomposition, drawn, tuple(found)):
            areas[curve.side].append(curve.area)
    for side, values in areas.items():
        assert abs(sum(values) / len(values)) < 0.01, side
    u, _, vh = torch.linalg.svd(decomposition.weight.double())
    inside = torch.outer(u[:, 0], vh[0]).float()
    for curve in curves(decomposition, energies_along(decomposition, inside), tuple(found)):
        assert min(curve.ssa) > 0.999 and curve.area > 0.15


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    decomposition = decompose(_weight(300, 400, "flat"))
    curve = curves(decomposition, energies_along(decomposition, _random(300, 400)), ("left",))[0]
    assert len(curve.k) == 200 and curve.k[0] == 1 and curve.k[-1] == 300
    assert curve.ssa[-1] == pytest.approx(1)


@pytest.mark.parametrize("shape", [(300, 700), (700, 300)])
@pytest.mark.parametrize(("spectrum", "single"), [("flat", True), ("power law", True), ("low rank", False)])
def test_float32_is_used_where_its_bound_holds_and_only_there(
    shape: tuple[int, int], spectrum: str, single: bool
) -> None:
    weight, delta = _weight(*shape, spectrum), _random(*shape)
    decomposition = decompose(weight)
    energies = energies_along(decomposition, delta)
    assert (energies.cross.dtype == torch.float32) == single
    u, sigma, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    known = sigma > 1e-6 * sigma[0]
    total = float(delta.double().pow(2).sum())
    for found, exact in (
        (energies.left, (u.T @ delta.double()).pow(2).sum(1)),
        (energies.right, (delta.double() @ vh.T).pow(2).sum(0)),
    ):
        error = (found - exact / total)[known].cumsum(0).abs().max()
        assert float(error) < 1e-5
    spectrum_error = energies.spectrum.sqrt().flip(0) - torch.linalg.svdvals(delta.double())
    assert float(spectrum_error.abs().max()) < 1e-6 * float(delta.norm())


def test_no_tuning_has_no_curve_and_no_area() -> None:
    decomposition = decompose(_weight(300, 400, "flat"))
    for curve in curves(decomposition, energies_along(decomposition, torch.zeros(300, 400)), ("left", "two_sided")):
        assert all(map(math.isnan, curve.ssa)) and math.isnan(curve.area)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_float32_products_do_not_depend_on_the_size_of_the_tuning_vector(scale: float) -> None:
    decomposition, delta = decompose(_weight(300, 400, "flat")), _random(300, 400) * 1e3
    plain = align(decomposition, delta)
    scaled = energies_along(decomposition, delta * scale)
    assert scaled.cross.dtype == torch.float32
    assert [row.ssa for row in align(decomposition, delta * scale)] == pytest.approx([row.ssa for row in plain])


@pytest.mark.parametrize("n", [1, 2])
def test_lapack_has_the_threads_that_torch_has(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's share of them too: two libraries with every core each would wait for one another."""
    asked: list[int] = []

    class Limits:
        def limit(self, limits: int, user_api: str) -> nullcontext[None]:
            asked.append(limits)
            return nullcontext()

    monkeypatch.setattr("tv.measures.decomposition._threads_of", lambda package: Limits())
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        weight = _random(12, 20)
        values, vectors = eigenvectors(gram(weight, weight))
        largest, leading = leading_eigenvectors(gram(weight, weight), 3)
    finally:
        torch.set_num_threads(before)
    assert asked == [n]
    torch.testing.assert_close(largest, values.flip(0)[:3])
    torch.testing.assert_close((leading * vectors.flip(1)[:, :3]).sum(0).abs(), torch.ones(3, dtype=torch.float64))
