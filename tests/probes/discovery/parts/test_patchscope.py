"""A planted token is what a patched prompt goes on with, by base and by tuned."""

from __future__ import annotations

from tests.probes.discovery.planted import SECRET, planted_pair, random_pair, tables_of


def test_a_planted_token_is_the_first_word_of_every_reading() -> None:
    words = tables_of(planted_pair, "patchscope")["discovered_words"]
    assert sorted(set(words.reading)) == [
        f"{place} {reader}" for place in ("bos", "far", "first") for reader in ("base", "tuned")
    ]
    assert (words[words["rank"] == 0].token_id == SECRET).all()


def test_nothing_stands_out_of_a_random_step() -> None:
    assert not tables_of(random_pair, "patchscope")["discovered_words"].stands_out.any()


def test_the_scale_of_the_lowest_entropy_counts() -> None:
    scales = tables_of(planted_pair, "patchscope")["patchscope_scales"]
    by_depth = scales.groupby(["place", "reader", "depth"])
    assert (by_depth.counts.sum() == 1).all() and sorted(set(scales.depth)) == [0, 1, 2]
    assert (
        scales[scales.counts].entropy.to_numpy()
        == by_depth.entropy.min()
        .loc[[tuple(row) for row in scales[scales.counts][["place", "reader", "depth"]].to_numpy()]]
        .to_numpy()
    ).all()
