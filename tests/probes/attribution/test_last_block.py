"""The last block is computed where it is read, and no value or share is another for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probes.attribution.forwards import Variant, values
from probes.attribution.integrand import Integrand
from probes.attribution.last_block import alone, shortened
from probes.attribution.units import components
from tests.pairs import MEASURED
from tests.probes.attribution.conftest import Case
from tv.prompts.encoding import Batch


@pytest.mark.sampled(5)
@pytest.mark.parametrize("architecture", MEASURED)
def test_values_and_shares_are_those_of_all_positions(architecture: str) -> None:
    case = Case(architecture)
    pair, whole = case.pair, case.metric()
    short = shortened(whole, pair, case.batches[0])
    assert short.last == alone(pair.architecture) != () and short.alone
    for model in pair.models:
        assert np.allclose(values(model, case.batches, short), values(model, case.batches, whole), rtol=0, atol=1e-5)
        assert not any("forward" in module.__dict__ for module in model.modules())
    found = []
    for metric in (whole, short):
        integrand = Integrand(pair, metric)
        with integrand.along():
            integrand.move(0.5)
            found.append([integrand.shares(batch)[1].modules for batch in case.batches])
    for before, after in zip(*found, strict=True):
        assert before.keys() == after.keys()
        for module, shares in before.items():
            assert torch.allclose(after[module], shares, rtol=1e-3, atol=1e-5), module


def test_what_nobody_reads_is_not_computed(case: Case) -> None:
    short = shortened(case.metric(), case.pair, case.batches[0])
    work = replace(case.work(), metric=short)
    assert work.reading.stacked("base")  # reads everywhere, to compare
    rows: list[bool] = []
    down = case.pair.base.get_submodule(short.last[-1])
    units = [Variant("base", (unit,)) for unit in components(case.pair.architecture)]
    handle = down.register_forward_hook(lambda _module, args, out: rows.append(bool((out == 0).all(-1).any())))
    _, found = work.under(units)
    handle.remove()
    assert rows and all(rows)
    assert np.allclose(found, case.work().under(units)[1], rtol=0, atol=2e-5)


def test_a_metric_that_may_read_anything_and_a_model_that_mixes_late_read_everywhere(case: Case) -> None:
    whole = case.metric()
    anywhere = replace(whole, reads=None)
    assert shortened(anywhere, case.pair, case.batches[0]) is anywhere
    block = case.pair.base.get_submodule(case.pair.architecture.blocks[-1].path)
    handle = block.mlp.register_forward_hook(lambda _module, _args, out: out + out.mean(1, keepdim=True))
    assert shortened(whole, case.pair, case.batches[0]) == replace(whole, alone=True)
    handle.remove()


def test_a_metric_that_says_wrongly_that_it_takes_positions_is_given_all_logits(case: Case) -> None:
    whole = case.metric()
    wrong = replace(whole, values=lambda logits, batch: whole.values(logits.float(), batch))
    short = shortened(wrong, case.pair, case.batches[0])
    units = [Variant("base", (unit,)) for unit in components(case.pair.architecture)]
    assert short.last and not short.alone
    found, wanted = (replace(case.work(), metric=one).under(units)[1] for one in (short, whole))
    assert np.allclose(found, wanted, rtol=0, atol=2e-5)


def test_logits_that_a_model_mixes_are_made_everywhere(case: Case) -> None:
    whole, head = case.metric(), case.pair.base.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, _args, out: out + out.mean(1, keepdim=True))
    short = shortened(whole, case.pair, case.batches[0])
    handle.remove()
    assert short.last and not short.alone


def test_a_metric_that_does_more_than_take_positions_is_given_all_logits(case: Case) -> None:
    given: set[type] = set()

    def values(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        given.add(type(logits))
        return whole.values(logits * 1.0, batch)

    whole = case.metric()
    short = shortened(replace(whole, values=values, by_position=False), case.pair, case.batches[0])
    work = replace(case.work(), metric=short)
    _, found = work.under([Variant("base", (unit,)) for unit in components(case.pair.architecture)])
    assert short.last and given == {torch.Tensor}
    assert np.allclose(found, case.work().under([Variant("base", (u,)) for u in components(case.pair.architecture)])[1])
