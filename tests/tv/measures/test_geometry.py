"""Norms, entries and ranks by hand."""

import math
from dataclasses import asdict

import pytest
import torch

from tv.measures.geometry import entries_of, ranks_of


def test_entries_by_hand() -> None:
    weight, delta = torch.diag(torch.tensor([4.0, 3.0])), torch.diag(torch.tensor([0.0, 1.0]))
    found = entries_of(weight, delta)
    assert (found.weight_norm, found.delta_norm, found.relative_norm) == (5.0, 1.0, 0.2)
    assert found.changed_fraction == 0.25
    assert found.cosine == pytest.approx((16 + 12) / (5 * math.sqrt(32)))
    assert found.cos_weight_delta == pytest.approx(3 / 5)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, delta = torch.randn(50, 7), torch.randn(50, 7)
    whole = asdict(entries_of(weight, delta))
    monkeypatch.setattr("tv.measures.geometry._PIECE", 8)
    assert asdict(entries_of(weight, delta)) == pytest.approx(whole)


def test_a_change_below_the_stored_precision_is_no_change() -> None:
    """bfloat16 keeps 8 bits: a step of 1e-4 of the weight is a change in float32 and none in bfloat16."""
    weight = torch.linspace(1, 2, 1000)[:, None] * torch.ones(1, 4)
    fine, coarse = entries_of(weight, weight * 1e-4, "F32"), entries_of(weight, weight * 1e-4, "BF16")
    assert fine.changed_fraction == 1
    assert coarse.changed_fraction == coarse.changed_fraction_bf16 == fine.changed_fraction_bf16 < 0.05
    assert entries_of(weight, weight * 0.1, "BF16").changed_fraction == 1


def test_the_update_is_held_against_the_magnitudes_of_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 300, generator=generator)
    noise = torch.randn(200, 300, generator=generator)
    unrelated = entries_of(weight, noise)
    for side in ("large", "small"):
        found, null = getattr(unrelated, f"{side}_overlap"), getattr(unrelated, f"{side}_overlap_null")
        assert null == pytest.approx(0.1, abs=1e-3)
        assert found == pytest.approx(null, abs=4 * math.sqrt(0.1 * 0.9 / 6000))
    onto_large, onto_small = entries_of(weight, weight**3), entries_of(weight, 1 / (weight.abs() + 0.01))
    assert (onto_large.large_overlap, onto_large.small_overlap) == (1, 0)
    assert (onto_small.large_overlap, onto_small.small_overlap) == (0, 1)


def test_a_sampled_threshold_is_close_to_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(400, 300, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("tv.measures.geometry._SAMPLE", 20_000)
    assert entries_of(weight, weight).large_overlap_null == pytest.approx(0.1, abs=0.01)


def test_ranks_by_hand() -> None:
    flat, single = ranks_of(torch.ones(5)), ranks_of(torch.tensor([2.0, 0.0, 0.0]))
    assert asdict(flat) == pytest.approx({"stable_rank": 5, "effective_rank": 5, "participation_ratio": 5})
    assert asdict(single) == pytest.approx({"stable_rank": 1, "effective_rank": 1, "participation_ratio": 1})
    assert all(math.isnan(value) for value in asdict(ranks_of(torch.zeros(3))).values())
    mixed = ranks_of(torch.tensor([2.0, 1.0]))
    assert (mixed.stable_rank, mixed.participation_ratio) == pytest.approx((5 / 4, 25 / 17))


def test_no_tuning_has_a_size_of_zero_and_no_direction() -> None:
    found = asdict(entries_of(torch.randn(8, 9), torch.zeros(8, 9)))
    assert [found[name] for name in ("delta_norm", "relative_norm", "changed_fraction")] == [0.0] * 3
    assert all(math.isnan(found[name]) for name in ("cos_weight_delta", "large_overlap", "small_overlap"))
    assert found["cosine"] == pytest.approx(1)
