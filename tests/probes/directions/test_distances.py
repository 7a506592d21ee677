"""Distances of representations against other implementations of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from probes.directions.distances import distances, mutual_neighbours, procrustes, unbiased_cka


def _states(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "d"), [(40, 7), (12, 30)])
def test_procrustes_is_scipys(n: int, d: int) -> None:
    one = _states(n, d, 0)
    other = one @ torch.linalg.qr(_states(d, d, 1)).Q + 0.4 * _states(n, d, 2)
    x, y = ((s - s.mean(0)).numpy().astype(np.float64) for s in (one, other))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    turn, _ = orthogonal_procrustes(x, y)
    assert procrustes(one, other) == pytest.approx(np.linalg.norm(x @ turn - y) ** 2 / 2, abs=1e-6)


def test_neighbours_are_scikit_learns() -> None:
    one, other, k = _states(50, 6, 0), _states(50, 6, 0) + 0.5 * _states(50, 6, 1), 5
    near = [
        NearestNeighbors(n_neighbors=k, metric="cosine").fit(s.numpy()).kneighbors(return_distance=False)
        for s in (one, other)
    ]
    shared = np.mean([len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)])
    assert mutual_neighbours(one, other, k) == pytest.approx(shared)


def test_cka_is_the_u_statistic_over_all_quadruples() -> None:
    """HSIC without bias: the mean of K_ij (L_ij + L_kl − 2 L_ik) over distinct i, j, k, l."""
    one, other = _states(7, 3, 2).double(), _states(7, 4, 3).double()
    other[:, 0] += 2 * one[:, 0]

    def hsic(x: Tensor, y: Tensor) -> float:
        k, m = (x @ x.T).numpy(), (y @ y.T).numpy()
        terms = [
            k[i, j] * (m[i, j] + m[p, q] - 2 * m[i, p])
            for i in range(7)
            for j in range(7)
            for p in range(7)
            for q in range(7)
            if len({i, j, p, q}) == 4
        ]
        return float(np.mean(terms))

    expected = hsic(one, other) / np.sqrt(hsic(one, one) * hsic(other, other))
    assert unbiased_cka(one, other) == pytest.approx(expected, abs=1e-9)


def test_what_is_turned_and_scaled_is_the_same_and_other_prompts_are_not() -> None:
    clusters = [f"c{i // 2}" for i in range(60)]
    one = _states(60, 8, 4)
    turned = 3 * one @ torch.linalg.qr(_states(8, 8, 5)).Q
    found = {each.measure: each for each in distances(one, turned, clusters, k=5, draws=20, seed=0)}
    assert [round(found[name].value, 5) for name in ("cka", "procrustes", "neighbours")] == [1.0, 0.0, 1.0]
    assert abs(found["cka"].shuffled) < 0.05 < found["cka"].lo
    assert found["neighbours"].shuffled == pytest.approx(5 / 59, abs=0.05)
    assert found["procrustes"].shuffled > 0.4
    unrelated = {e.measure: e for e in distances(one, _states(60, 8, 9), clusters, k=5, draws=20, seed=0)}
    assert unrelated["cka"].lo < 0.05 and unrelated["cka"].value < 0.1
