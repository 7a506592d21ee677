"""CKA without bias: independent sets have none in common, and nothing that leaves likenesses alone changes it."""

from __future__ import annotations

import torch

from probes.directions.similarity import cka, likenesses, shuffled_cka

N, D = 48, 160


def _states(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_independent_sets_have_nothing_in_common_on_average() -> None:
    one, other = _states(60, N, D, seed=0), _states(60, N, D, seed=1)
    found = cka(likenesses(one), likenesses(other))
    assert abs(float(found.mean())) < 3 * float(found.std()) / 60**0.5 < 0.02
    centred = [states - states.mean(1, keepdim=True) for states in (one, other)]
    cross, own = centred[0].mT @ centred[1], [states.mT @ states for states in centred]
    plain = cross.square().sum((1, 2)) / (own[0].norm(dim=(1, 2)) * own[1].norm(dim=(1, 2)))
    assert float(plain.mean()) > 0.7  # what the estimator with bias says


def test_it_is_the_estimator_term_by_term() -> None:
    one, other = _states(7, 3, seed=2), _states(7, 3, seed=3) + 2 * _states(7, 3, seed=2)

    def hsic(x: torch.Tensor, y: torch.Tensor) -> float:
        k, m = (a @ a.T - torch.diag((a @ a.T).diagonal()) for a in (x.double(), y.double()))
        n = len(k)
        whole = torch.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return float(whole / (n * (n - 3)))

    expected = hsic(one, other) / (hsic(one, one) * hsic(other, other)) ** 0.5
    assert abs(float(cka(likenesses(one), likenesses(other))) - expected) < 1e-9


def test_shuffled_texts_have_nothing_in_common() -> None:
    states = _states(N, D, seed=4)
    own = likenesses(states), likenesses(states + 0.5 * _states(N, D, seed=5))
    draws = shuffled_cka(*own, 99, torch.Generator().manual_seed(0))
    assert float(cka(*own)) > 0.7 > 0.1 > float(draws.quantile(0.95)) and abs(float(draws.mean())) < 0.02
