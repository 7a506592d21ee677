"""Spectra of a pair: torch's own singular values, and T's energy along W's directions."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tv
from tests.pairs import build_pair
from tv.measures.decomposition import decompose, energies_along
from tv.measures.spectra import POINTS, spectra_of


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (100, 100)])
def test_values_are_those_of_a_plain_decomposition(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, delta = (torch.randn(shape, generator=generator) for _ in range(2))
    decomposition = decompose(weight)
    rows = spectra_of(decomposition, energies_along(decomposition, delta))
    ranks = [row.rank for row in rows]
    assert ranks == sorted(set(ranks)) and ranks[:3] == [1, 2, 3] and ranks[-1] == min(shape) and len(rows) <= POINTS
    u, sigma, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    of_delta = torch.linalg.svdvals(delta.double())
    total = delta.double().pow(2).sum()
    for row in rows:
        assert row.sigma == pytest.approx(float(sigma[row.rank - 1]), rel=1e-5)
        assert row.sigma_delta == pytest.approx(float(of_delta[row.rank - 1]), rel=1e-5)
        left = (u[:, : row.rank].T @ delta.double()).pow(2).sum() / total
        right = (delta.double() @ vt[: row.rank].T).pow(2).sum() / total
        assert (row.share_left, row.share_right) == pytest.approx((float(left), float(right)), abs=1e-5)


def test_of_a_pair_every_matrix_and_the_shares_are_ssa_squared(tmp_path: Path) -> None:
    pair = build_pair(tmp_path, "llama")
    found, alignment = tv.spectra(*pair), tv.ssa(*pair, heads=False)
    assert set(found.module) == {"q", "k", "v", "o", "gate", "up", "down"}
    fixed = alignment[alignment.epsilon.isna()]
    for side in ("left", "right"):
        rows = fixed[fixed.side == side].merge(
            found, left_on=["layer", "module", "k"], right_on=["layer", "module", "rank"]
        )
        assert len(rows) >= 7
        assert np.allclose(rows.ssa**2, rows[f"share_{side}"], atol=1e-5)


def test_a_vector_of_zeros_has_a_spectrum_of_zeros_and_no_shares(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path, "llama")
    found = tv.spectra(base, base)
    assert (found.sigma_delta == 0).all() and (found.sigma >= 0).all()
    assert found[["share_left", "share_right"]].isna().all().all()
