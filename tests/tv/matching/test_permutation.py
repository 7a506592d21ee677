"""Planted orders are found again, with signs and scales, through as much noise as weights."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from tv.matching.permutation import (
    Attention,
    contribution_scores,
    match_heads,
    match_neurons,
    match_plain_neurons,
    match_plain_responses,
    match_responses,
    weight_scores,
)

Glu = tuple[Tensor, Tensor, Tensor]


def glu(f: int, d: int, seed: int = 0) -> Glu:
    """gate (f, d), up (f, d) and down (d, f), with a bias's column on gate and up."""
    torch.manual_seed(seed)
    return torch.randn(f, d + 1), torch.randn(f, d + 1), torch.randn(d, f)


def noisy(matrices: Glu, sigma: float, seed: int = 1) -> Glu:
    torch.manual_seed(seed)
    gate, up, down = (matrix + sigma * matrix.std() * torch.randn_like(matrix) for matrix in matrices)
    return gate, up, down


def plant(matrices: Glu, seed: int = 2) -> tuple[Glu, Tensor, Tensor]:
    """(the neurons in another order, up × c and down ÷ c; where base neuron i stands now; c there)."""
    torch.manual_seed(seed)
    gate, up, down = matrices
    f = len(gate)
    order = torch.randperm(f)
    c = torch.exp((2 * torch.rand(f) - 1) * 1.386) * (2 * torch.randint(0, 2, (f,)) - 1)  # ± 1/4 … 4
    return (gate[order], up[order] * c[:, None], down[:, order] / c), order.argsort(), c[order.argsort()]


def respond(matrices: Glu, x: Tensor) -> Tensor:
    gate, up, down = matrices
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def test_a_planted_order_is_found_through_noise_of_one_sigma() -> None:
    base = glu(700, 160)
    tuned, where, c = plant(noisy(base, 1.0))
    found = match_neurons(*base, *tuned)
    right = found.permutation == where
    assert right.float().mean() >= 0.99
    assert found.scale is not None
    assert (found.scale.sign() == c.sign())[right].float().mean() >= 0.99
    assert (found.scale / c)[right].log().abs().quantile(0.9) < 0.15  # noise of one σ is in both norms
    gate, up, down = base
    plain = match_plain_neurons(torch.cat([gate, up], 1), down, torch.cat(tuned[:2], 1), tuned[2])
    assert (plain.permutation == where).float().mean() < 0.85  # without sign and balance
    assert found.score.mean() > 0.6 and abs(found.identity_score.mean()) < 0.05


def test_without_noise_the_base_comes_back_and_the_function_stays() -> None:
    base = glu(90, 40)
    tuned, where, c = plant(base)
    found = match_neurons(*base, *tuned)
    assert torch.equal(found.permutation, where) and found.scale is not None
    torch.testing.assert_close(found.scale, c)
    torch.testing.assert_close(found.score, torch.ones(90))
    order, scale = found.permutation, found.scale
    matched = (tuned[0][order], tuned[1][order] / scale[:, None], tuned[2][:, order] * scale)
    for own, expected in zip(matched, base, strict=True):
        torch.testing.assert_close(own, expected)
    x = torch.randn(20, 40)
    torch.testing.assert_close(respond(matched, x), respond(tuned, x), atol=1e-3, rtol=1e-4)


def test_scores_do_not_see_how_up_and_down_share_their_size() -> None:
    base, tuned = glu(40, 20), glu(40, 20, seed=5)
    found = match_neurons(*base, *tuned)
    c = torch.exp(torch.randn(40)) * torch.randn(40).sign()
    again = match_neurons(base[0], base[1] * c[:, None], base[2] / c, *tuned)
    assert torch.equal(found.permutation, again.permutation)
    torch.testing.assert_close(found.score, again.score)
    assert found.scale is not None and again.scale is not None
    torch.testing.assert_close(found.scale, again.scale * c)


def test_no_assignment_is_better() -> None:
    """Against every permutation, where several base neurons want the same tuned one."""
    torch.manual_seed(0)
    up, down, tuned_up, tuned_down = torch.randn(6, 3), torch.randn(3, 6), torch.randn(6, 3), torch.randn(3, 6)
    scores = up @ tuned_up.T + down.T @ tuned_down
    assert len(scores.argmax(1).unique()) < 6
    best = max(permutations(range(6)), key=lambda order: float(scores[torch.arange(6), list(order)].sum()))
    found = match_plain_neurons(up, down, tuned_up, tuned_down)
    assert found.permutation.tolist() == list(best) and found.scale is None
    norms = (up.pow(2).sum(1) + down.pow(2).sum(0)).sqrt(), (tuned_up.pow(2).sum(1) + tuned_down.pow(2).sum(0)).sqrt()
    expected = scores[torch.arange(6), list(best)] / norms[0] / norms[1][list(best)]
    torch.testing.assert_close(found.score, expected)
    torch.testing.assert_close(found.identity_score, scores.diagonal() / norms[0] / norms[1])


def test_more_neurons_than_are_scored_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tv.matching.permutation._CHUNK", 7)
    base = glu(40, 30)
    for tuned in (noisy(base, 0.3), plant(noisy(base, 0.3))[0], glu(40, 30, seed=9)):
        in_chunks = match_neurons(*base, *tuned)
        monkeypatch.setattr("tv.matching.permutation._CHUNK", 1024)
        whole = match_neurons(*base, *tuned)
        monkeypatch.setattr("tv.matching.permutation._CHUNK", 7)
        assert torch.equal(in_chunks.permutation, whole.permutation)


def test_what_training_moved_a_little_stays_where_it_is() -> None:
    base = glu(60, 40)
    found = match_neurons(*base, *noisy(base, 0.1))
    assert found.is_identity and torch.equal(found.scale, torch.ones(60))
    assert torch.equal(found.score, found.identity_score)


def test_twins_and_dead_neurons_do_not_trade_places() -> None:
    gate, up, down = glu(30, 20)
    gate[5], up[5], down[:, 5] = gate[3], up[3], down[:, 3]  # twins
    for dead in (7, 8, 9):
        gate[dead], up[dead], down[:, dead] = 0, 0, 0
    tuned = (gate.clone(), up.clone(), down.clone())
    tuned[0][[20, 21]], tuned[1][[20, 21]] = tuned[0][[21, 20]], tuned[1][[21, 20]]
    tuned[2][:, [20, 21]] = tuned[2][:, [21, 20]]
    found = match_neurons(gate, up, down, *tuned)
    assert found.moved.nonzero().flatten().tolist() == [20, 21]
    assert not found.flipped.any() and not found.rescaled.any()
    assert bool(torch.isfinite(found.score).all())


def test_a_sign_alone_counts() -> None:
    gate, up, down = glu(20, 30)
    flip = torch.ones(20)
    flip[4] = -1
    found = match_neurons(gate, up, down, gate, up * flip[:, None], down * flip)
    assert not found.moved.any() and found.flipped.nonzero().flatten().tolist() == [4]
    assert not found.is_identity and found.identity_score[4] < 0 < found.score[4]


def test_responses_carry_order_and_sign() -> None:
    base = glu(50, 40)
    tuned, where, c = plant(noisy(base, 0.3))
    x = torch.cat([torch.randn(2000, 40), torch.ones(2000, 1)], 1)
    own, other = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T) for gate, up, _ in (base, tuned))
    r = torch.corrcoef(torch.cat([own, other], 1).T)[:50, 50:]
    found = match_responses(r, 2000, *base[1:], *tuned[1:])
    assert torch.equal(found.permutation, where) and found.scale is not None
    assert torch.equal(found.scale.sign(), c.sign()) and (found.scale / c).log().abs().max() < 0.3
    assert bool((found.score > 0.5).all())
    assert not torch.equal(match_plain_responses(r, 2000).permutation, where)  # half of the signs are against it
    assert torch.equal(match_plain_responses(r.abs(), 2000).permutation, where)


def test_chance_correlations_move_nothing() -> None:
    """Over few tokens the best of many unrelated neurons looks better than the neuron itself."""
    torch.manual_seed(0)
    own = torch.randn(100, 60)
    other = 0.1 * own + torch.randn(100, 60)
    r = torch.corrcoef(torch.cat([own, other], 1).T)[:60, 60:]
    up, down = torch.randn(60, 8), torch.randn(8, 60)
    assert (r.abs().argmax(1) != torch.arange(60)).float().mean() > 0.5
    found = match_responses(r, 100, up, down, up, down)
    assert found.moved.float().mean() < 0.15
    assert not (found.flipped & ~found.moved & (r.diagonal().abs() < 0.2)).any()


def attention(heads: int, groups: int, seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    d, width = 48, 8
    return Attention(
        torch.randn(heads, width, d + 1),
        torch.randn(groups, width, d + 1),
        torch.randn(groups, width, d + 1),
        torch.randn(heads, width, d),
    )


def plant_heads(own: Attention, sigma: float) -> tuple[Attention, Tensor, Tensor]:
    """(heads in another order, each in another basis, with noise; where groups and heads stand now)."""
    torch.manual_seed(7)
    heads, groups = len(own.query), len(own.key)
    share = heads // groups
    group_order = torch.randperm(groups)
    order = torch.cat([group * share + torch.randperm(share) for group in group_order])
    parts = [part + sigma * torch.randn_like(part) for part in (own.query, own.key, own.value, own.output)]
    query, key, value, output = parts[0][order], parts[1][group_order], parts[2][group_order], parts[3][order]
    a, b = torch.randn(2, groups, 8, 8) * 0.3 + torch.eye(8)
    query = a.repeat_interleave(share, 0) @ query
    key = a.inverse().mT @ key
    value = b @ value
    output = b.inverse().mT.repeat_interleave(share, 0) @ output
    return Attention(query, key, value, output), group_order.argsort(), order.argsort()


@pytest.mark.parametrize(("heads", "groups"), [(8, 8), (8, 4), (12, 3), (6, 1)])
def test_planted_heads_are_found_in_any_basis_through_noise(heads: int, groups: int) -> None:
    base = attention(heads, groups)
    tuned, group_where, where = plant_heads(base, 1.0)
    scores = weight_scores(base, tuned)
    found_groups, found_heads = match_heads(scores, groups)
    assert torch.equal(found_groups.permutation, group_where) and torch.equal(found_heads.permutation, where)
    assert found_heads.scale is None
    torch.testing.assert_close(found_heads.score, scores[torch.arange(heads), where])
    exact, _, where = plant_heads(base, 0.0)
    torch.testing.assert_close(
        weight_scores(base, exact)[torch.arange(heads), where], torch.ones(heads), atol=1e-3, rtol=0
    )


def test_head_scores_are_cosines_of_the_products() -> None:
    base, tuned = attention(6, 3), attention(6, 3, seed=4)
    scores = weight_scores(base, tuned)
    for i in range(6):
        for j in range(6):
            pairs = [
                (base.output[i].T @ base.value[i // 2], tuned.output[j].T @ tuned.value[j // 2]),
                (base.query[i].T @ base.key[i // 2], tuned.query[j].T @ tuned.key[j // 2]),
            ]
            by_hand = [torch.cosine_similarity(a.flatten(), b.flatten(), 0) for a, b in pairs]
            assert scores[i, j] == pytest.approx(float(sum(by_hand)) / 2, abs=1e-5)


def test_contributions_are_compared_by_what_is_written() -> None:
    torch.manual_seed(0)
    heads, width, d, tokens = 4, 5, 20, 50
    output, other_output = torch.randn(2, heads, width, d)
    z, other_z = torch.randn(2, tokens, heads, width)
    cross = torch.einsum("tha,tgb->hagb", z, other_z)
    own, other_own = (torch.einsum("tha,thb->hab", side, side) for side in (z, other_z))
    scores = contribution_scores(output, other_output, cross, own, other_own)
    written, other = (torch.einsum("tha,had->htd", *side) for side in ((z, output), (other_z, other_output)))
    for i in range(heads):
        for j in range(heads):
            by_hand = torch.cosine_similarity(written[i].flatten(), other[j].flatten(), 0)
            assert scores[i, j] == pytest.approx(float(by_hand), abs=1e-5)


def test_queries_stay_with_their_group() -> None:
    """The single best places lie in different groups; the pair of queries goes where both do well."""
    scores = torch.zeros(4, 4)
    scores[0, 0], scores[1, 2] = 0.9, 0.9  # apart, they would be torn
    scores[0, 3], scores[1, 2] = 0.6, 0.9
    scores[2, 1], scores[3, 0] = 0.5, 0.5
    groups, heads = match_heads(scores, 2)
    assert groups.permutation.tolist() == [1, 0] and heads.permutation.tolist() == [3, 2, 1, 0]
