"""Variants that are read together have the values that each has alone, and share what they have in common."""

from collections import Counter

import numpy as np
import pytest
import torch

from probes.attribution.forwards import Model, Variant
from probes.attribution.packing import packs
from probes.attribution.units import Unit, components, units_of
from tests.pairs import HYBRIDS, MEASURED
from tests.probes.attribution.conftest import Case
from tv.prompts.encoding import Encoded

#: Mixers of other kinds carry a state from token to token, so that prompts cannot share a row.
RECURRENT = {"qwen3_next", "falcon_h1", "mamba"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", MEASURED + HYBRIDS)
def test_stacked_values_are_those_of_one_forward_each(architecture: str) -> None:
    case = Case(architecture)
    pair, _metric = case.pair, case.metric()
    all_units = components(pair.architecture)
    sets: list[list[Unit]] = [[unit] for unit in all_units]
    for granularity in ("module", "head", "kv_head", "expert", "neuron"):
        units = units_of(pair.architecture, granularity)
        sets += [[unit] for unit in units[:: max(1, len(units) // 3)]]
    sets += [all_units[:3], all_units[1:4], all_units[::2], all_units]
    models: tuple[Model, ...] = ("base", "tuned")
    for name in models:
        work = case.work()
        start, found = work.under([Variant(name, tuple(units)) for units in sets])
        wanted_start, *wanted = case.one_by_one(name, [[], *sets])
        assert np.allclose(start, wanted_start, rtol=0, atol=2e-5)
        assert np.allclose(found, wanted, rtol=0, atol=2e-5)
        assert work.reading.stacked(name) == (architecture not in RECURRENT)


@pytest.mark.parametrize("metric", ["kl", "target_nll", "exact_match"])
def test_every_metric_reads_the_positions_that_are_its_own(case: Case, metric: str) -> None:
    work, units = case.work(metric), components(case.pair.architecture)
    wanted = case.one_by_one("base", [[unit] for unit in units], metric)
    _, found = work.under([Variant("base", (unit,)) for unit in units])
    assert np.allclose(found, wanted, rtol=0, atol=2e-5) and work.reading.stacked("base")


def test_what_variants_have_in_common_is_computed_once(case: Case) -> None:
    """Of sets that part at layer 1, layer 0 runs once, for one row; the last runs once for each way of changing it."""
    work, architecture = case.work(), case.pair.architecture
    work.under([Variant("base")])  # proves, and looks at the blocks
    first, second, third = (Unit("component", layer, "mlp") for layer in range(3))
    rows: Counter[int] = Counter()
    calls: Counter[int] = Counter()

    def count(layer: int):
        def hook(_module, args) -> None:
            rows[layer] += len(args[0])
            calls[layer] += 1

        return hook

    hooks = [
        case.pair.base.get_submodule(block.writer("mlp").path).register_forward_pre_hook(count(block.layer))
        for block in architecture.blocks
    ]
    work.under(
        [Variant("base", units) for units in ((first, second), (first, third), (first,), (first, second, third))]
    )
    for hook in hooks:
        hook.remove()
    # The start is known. Layer 0 has one way of going through it, layers 1 and 2 have two.
    assert [rows[layer] for layer in range(3)] == [1, 2, 4] and [calls[layer] for layer in range(3)] == [1, 2, 2]


def test_units_that_were_not_moved_change_nothing_and_cost_nothing(case: Case) -> None:
    pair = case.pair
    case.keep_only(lambda name, tuned, _: (tuned == tuned) & (pair.architecture.component_of(name) == (2, "mlp")))
    work, still = case.work(), Unit("component", 0, "attn")
    start, (found,) = work.under([Variant("base", (still,))])
    assert np.array_equal(found, start)
    assert work.swaps.levels(Variant("base", (still, Unit("component", 2, "mlp")))).keys() == {2}


def test_prompts_that_begin_alike_share_their_first_tokens(case: Case) -> None:
    one = case.encoded[0]

    def item(name: str, *ids: int) -> Encoded:
        return Encoded(one.prompt.__class__(name, "s", "d", name), ids, len(ids) - 1, len(ids) - 2, ids[-1], 3)

    several = [item("a", 5, 6, 7, 9), item("b", 5, 6, 8, 9, 11), item("c", 4, 6, 7, 9)]
    (pack,) = packs(several, lambda encoded: [encoded.answer_pos])
    assert pack.ids.tolist() == [[4, 6, 7, 5, 6, 7, 8, 9]]
    by_prompt = {each.prompt.id: place for each, place in zip(pack.encoded, pack.places, strict=True)}
    for each in several:
        (position,), (at,) = by_prompt[each.prompt.id]
        token = int(pack.read[at])
        seen = (pack.mask[0, 0, token] == 0).nonzero()[:, 0]
        assert position == each.answer_pos
        assert tuple(pack.ids[0, seen].tolist()) == each.ids[: position + 1]
        assert pack.positions[0, seen].tolist() == list(range(position + 1))
    assert [len(each.encoded) for each in packs(several, lambda encoded: [encoded.answer_pos], tokens=6)] == [2, 1]


def test_a_model_that_takes_no_mask_is_read_one_by_one(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, run = case.pair, type(case.pair.base).forward

    def without_mask(self, *args, attention_mask=None, **kwargs):
        return run(self, *args, attention_mask=attention_mask if attention_mask.ndim == 2 else None, **kwargs)

    monkeypatch.setattr(type(pair.base), "forward", without_mask)
    work, units = case.work(), components(pair.architecture)
    start, found = work.under([Variant("base", (unit,)) for unit in units])
    assert not work.reading.stacked("base")
    plain, *wanted = case.one_by_one("base", [[], *([unit] for unit in units)])
    assert np.array_equal(found, wanted) and np.array_equal(start, plain)


def test_rounding_to_16_bits_is_read_one_by_one(case: Case) -> None:
    for model in case.pair.models:
        model.to(torch.bfloat16)
    work = case.work()
    work.under([Variant("tuned")])
    assert not work.reading.stacked("tuned")
