"""Kinds of place, depths that are read, and the scale on which depths are held against each other."""

from __future__ import annotations

import torch

from probes.discovery.differences import Sums, chosen_of, middle, on_one_scale, places, read_at
from probes.discovery.observing import Seen
from tests.probes.discovery.planted import context_of, random_pair


def test_places_leave_a_bos_out_and_need_none() -> None:
    context = context_of(random_pair())
    batch = context.texts.batches[0][0]
    base = context.sides.base(batch)
    seen = Seen(base, base, batch.encoded, tuple(0 for _ in batch.encoded), True)
    found = places(seen, 0)
    lengths = [len(item.ids) for item in batch.encoded]
    assert int(found["bos"].sum()) == len(lengths) and set(seen.pos[found["bos"]].tolist()) == {0}
    assert set(seen.pos[found["first"]].tolist()) == {1, 2, 3, 4, 5} and int(seen.pos[found["far"]].min()) == 9
    without = places(seen, None)
    assert not bool(without["bos"].any())
    assert set(seen.pos[without["first"]].tolist()) == {0, 1, 2, 3, 4} and int(seen.pos[without["far"]].min()) == 8


def test_depths_hold_the_first_the_middle_and_the_last() -> None:
    for n_layers in (1, 2, 3, 12, 13, 29, 61, 126):
        depths = read_at(n_layers)
        assert {0, middle(n_layers), n_layers} <= set(depths) and len(depths) <= 14 and depths == sorted(set(depths))


def test_a_longer_difference_scores_no_higher_and_the_widest_depth_counts_most() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [0.1], [5.0], [2.0]])
    scores = on_one_scale(logits)
    torch.testing.assert_close(on_one_scale(logits * 30), scores)
    assert float(scores.std(1).argmax()) == 2 and abs(float(scores[2].std()) - 1) < 1e-5
    ids, depths = chosen_of(scores, 3)
    assert scores[depths, ids].tolist() == sorted(scores.max(0).values.tolist())[:-4:-1]


def test_the_size_of_a_mean_is_what_both_halves_agree_on() -> None:
    sums = Sums.none(1, 2)
    sums.apart[0, 3, 0], sums.apart[1, 5, 0] = torch.tensor([6.0, 8.0]), torch.tensor([3.0, -4.0])
    sums.n[0, 3], sums.n[1, 5] = 2, 1
    assert sums.in_both and float(sums.size()) == 0  # 9 − 16 is below 0
    sums.apart[1, 5, 0] = torch.tensor([3.0, 0.0])
    assert abs(float(sums.size()) - 3) < 1e-6 and sums.without(0) == []
