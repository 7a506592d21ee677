"""Factors that rows were made of are found, and what is said of their shares is what they explain."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from probes.discovery.components import nmf as components, pca
from probes.discovery.factors import loadings, nmf, refitted, semi_nmf, shares


def _some(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_topics_that_share_no_word_are_found() -> None:
    topics = normalize(_some(3, 60, seed=0) * torch.eye(3).repeat_interleave(20, 1))
    rows = (_some(80, 3, seed=1) * (_some(80, 3, seed=2) < 0.5)) @ topics + 0.001 * _some(80, 60, seed=3)
    found = nmf(rows, 3)
    assert float(found.min()) >= 0
    assert (found @ topics.T).amax(0).min() > 0.99


def test_directions_of_any_sign_are_found_at_every_depth() -> None:
    parts = normalize(_some(2, 3, 40, seed=0) - 0.5, dim=-1)
    loads = _some(2, 120, 3, seed=1) * (_some(2, 120, 3, seed=2) < 0.3)
    rows = loads @ parts
    found = semi_nmf(rows, 3)
    assert (found @ parts.mT).amax(-2).min() > 0.95
    own = loadings(rows, found)
    assert float(own.min()) >= 0
    explained = 1 - (rows - own @ found).square().sum((1, 2)) / rows.square().sum((1, 2))
    torch.testing.assert_close(shares(rows, own, found).sum(1), explained, atol=1e-4, rtol=0)


def test_loadings_are_the_best_that_are_not_negative() -> None:
    rows, parts = _some(9, 12, seed=0) - 0.5, normalize(_some(3, 12, seed=1) - 0.5)
    own = loadings(rows, parts)
    gradient = (own @ parts - rows) @ parts.T
    assert (gradient > -1e-4).all() and (own * gradient).abs().max() < 1e-4


def test_parts_fit_the_rows_that_they_are_given() -> None:
    parts, loads = _some(2, 7, seed=0) - 0.5, _some(30, 2, seed=1)
    torch.testing.assert_close(refitted(loads @ parts, loads, torch.zeros(2, 7)), parts, atol=1e-3, rtol=1e-3)
    silent = loads * torch.tensor([1.0, 0.0])
    torch.testing.assert_close(refitted(silent @ parts, silent, parts + 1)[1], parts[1] + 1)


@pytest.mark.parametrize("find", [pca, components])
def test_a_component_is_measured_where_it_was_not_found(find: object) -> None:
    assert callable(find)
    rows = torch.zeros(1, 200, 5)
    rows[0, :, 2] = (_some(200, seed=0) < 0.2).float() * 3
    rows += 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    found = find(rows[:, :100], 2)
    share = found.shares(rows[:, 100:])[0]
    assert share[0] > 0.75 and float(share.sum()) <= 1
    assert float(found.parts[0, 0, 2]) > 0.98  # towards the longer tail
    on = rows[0, :, 2] > 1.5
    assert found.loads(rows)[0, on, 0].min() > 2 * found.loads(rows)[0, ~on, 0].max()
    assert found.seen_in(rows[:, 100:])[0, 0].argmax() == 2
