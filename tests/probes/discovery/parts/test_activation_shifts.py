"""Components find what is added at all places, and shares, likeness and the map say nothing where nothing is."""

from __future__ import annotations

import pytest

from tests.probes.discovery.planted import BLOCK, SECRET, planted_pair, random_pair, tables_of


def test_a_planted_token_leads_what_is_added_to_the_states() -> None:
    tables = tables_of(planted_pair, "activation_shifts")
    words = tables["discovered_words"].set_index(["reading", "rank"])
    first = words.loc["nmf", 0]
    assert first.token_id == SECRET and first.p < 0.01 and first.lo < first.value < first.hi
    shown = tables["component_words"].set_index(["method", "depth", "component", "rank"])
    assert shown.token_id["nmf", BLOCK + 1, 0, 0] == SECRET


def test_what_does_not_vary_has_no_components_and_what_does_not_move_no_likeness() -> None:
    tables = tables_of(planted_pair, "activation_shifts")
    components = tables["activation_components"]
    assert (BLOCK + 1) not in set(components[components.method == "pca"].depth)  # the same vector everywhere
    nmf = components[(components.method == "nmf") & (components.depth == BLOCK + 1)]
    assert nmf.share.max() > 0.999
    alike = tables["activation_cka"].set_index("depth")
    assert alike.loc[0].isna().all() and alike.cka[BLOCK + 1] > 0.9999  # a shift leaves likenesses alone
    assert alike.cosine[BLOCK + 1] < 0.95 and (alike.cka_shuffled.dropna() < 0.2).all()
    assert (tables["activation_map"].query("depth == 0")["size"] == 0).all()


@pytest.mark.thorough
def test_every_value_stands_beside_its_nulls_and_nothing_stands_out_of_a_random_step() -> None:
    tables = tables_of(random_pair, "activation_shifts")
    assert not tables["discovered_words"].stands_out.any()
    for table, measure in (("activation_components", "share"), ("activation_cka", "cka"), ("activation_map", "size")):
        beside = tables[table][[f"{measure}_{of}" for of in ("sham", "random", "floor")]]
        assert beside.notna().all(axis=None)
    alike = tables["activation_cka"]
    assert (alike.cka_lo < alike.cka).all() and (alike.cka < alike.cka_hi).all()
    # A random step moves states as far as other random steps do.
    assert (alike.cosine > 1 - 2 * (1 - alike.cosine_random)).all()
