"""Grafts and reverts are exact, complete at every granularity, and leave the models bit for bit as they were."""

import pickle

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from probes.attribution.effects import Effects
from probes.attribution.forwards import Floats, Swap, Variant, from_model, swapped, values, values_under
from probes.attribution.methods.exact import graft, revert
from probes.attribution.units import WHOLE, Unit, components, units_of
from tests.pairs import MEASURED
from tests.probes.attribution.conftest import Case, checksum
from tv.arithmetic.controls import CONTROLS, control_vector


@pytest.mark.sampled(5)
@pytest.mark.parametrize("architecture", MEASURED)
def test_moving_everything_is_the_other_model_at_every_granularity(architecture: str) -> None:
    case = Case(architecture)
    pair, metric = case.pair, case.metric()
    base, tuned = values(pair.base, case.batches, metric), values(pair.tuned, case.batches, metric)
    assert not np.allclose(base, tuned)
    for units in (components(pair.architecture), units_of(pair.architecture, "module"), [WHOLE]):
        for model, other, wanted in ((pair.base, pair.tuned, tuned), (pair.tuned, pair.base, base)):
            swap = from_model(model, other, pair.architecture, units)
            assert np.array_equal(_under(case, model, swap), wanted)


def _under(case: Case, model: PreTrainedModel, swap: Swap) -> Floats:
    """The metric of every prompt under one swap."""
    read = (values_under(model, case.pair.architecture, [swap], batch, case.metric()) for batch in case.batches)
    return np.concatenate([values for each in read for values in each])


@pytest.mark.sampled(6)
@pytest.mark.parametrize("architecture", MEASURED)
def test_blocks_that_cannot_change_are_not_computed_and_it_makes_no_difference(architecture: str) -> None:
    case = Case(architecture)
    pair, metric = case.pair, case.metric()
    layer = pair.architecture.n_layers - 1
    calls = []
    counted = [
        pair.base.get_submodule(b.path).register_forward_pre_hook(lambda m, _a: calls.append(m))
        for b in pair.architecture.blocks
    ]
    inner = pair.base.get_submodule(pair.architecture.blocks[0].writer("mlp").path).register_forward_pre_hook(
        lambda m, _a: calls.append(m)
    )
    units = [Unit("component", layer, "mlp")]
    swap = from_model(pair.base, pair.tuned, pair.architecture, units)
    found = _under(case, pair.base, swap)
    ran = calls.count(pair.base.get_submodule(pair.architecture.blocks[0].writer("mlp").path))
    for handle in (*counted, inner):
        handle.remove()
    assert ran == len(case.batches)  # by the plain pass alone
    with swapped(pair.base, swap):
        assert np.array_equal(values(pair.base, case.batches, metric), found)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox", "phi3", "mixtral"])
@pytest.mark.parametrize("granularity", ["head", "kv_head", "expert", "neuron"])
def test_units_of_a_kind_are_disjoint_and_make_up_their_modules(architecture: str, granularity: str) -> None:
    """All units together move exactly the matrices that they cut, and none moves what another does."""
    case = Case(architecture)
    pair = case.pair
    units = units_of(pair.architecture, granularity)
    if not units:
        pytest.skip("the architecture has none")
    before = dict(pair.base.named_parameters())
    touched: dict[str, torch.Tensor] = {}
    for unit in units:
        for name, value in from_model(pair.base, pair.tuned, pair.architecture, [unit]).tensors().items():
            moved = (value != before[name]).int()
            touched[name] = touched.get(name, 0) + moved
    assert touched and all(int(count.max()) == 1 for count in touched.values())
    together = from_model(pair.base, pair.tuned, pair.architecture, units).tensors()
    after = dict(pair.tuned.named_parameters())
    for name, count in touched.items():
        assert torch.equal(together[name] != before[name], count.bool())
        assert torch.equal(together[name][count.bool()], after[name][count.bool()])
    cut = {m.parameter for m in pair.architecture.modules if _is_cut(m, granularity, pair.architecture)}
    whole = {name for name in cut if bool((touched[name] > 0).all())}
    fused = {"head": {"phi3", "gpt2"}, "kv_head": {"phi3"}}.get(granularity, set())
    assert whole == cut or architecture in fused


def _is_cut(module, granularity: str, architecture) -> bool:
    shared = architecture.n_kv_heads < architecture.n_heads and module.name in ("k", "v")
    return {
        "head": module.n_heads > 0 and not shared,
        "kv_head": module.n_heads > 0 and shared,
        "expert": module.expert >= 0,
        "neuron": module.name in ("gate", "up", "down"),
    }[granularity]


def test_models_come_back_bit_for_bit_also_after_an_exception(case: Case) -> None:
    pair = case.pair
    before = checksum(pair.base), checksum(pair.tuned)
    units = [*components(pair.architecture), *units_of(pair.architecture, "head")]
    for method in (graft, revert):
        list(method(case.work(), units))
    swap = from_model(pair.base, pair.tuned, pair.architecture, [Unit("component", 1, "mlp")])
    with pytest.raises(KeyboardInterrupt), swapped(pair.base, swap):
        raise KeyboardInterrupt
    assert (checksum(pair.base), checksum(pair.tuned)) == before
    assert not any("forward" in module.__dict__ for module in pair.base.modules())


@pytest.mark.parametrize("cause", [(1, "mlp"), (2, "attn"), (-1, "embed"), (3, "unembed")])
def test_a_planted_cause_is_found_alone(case: Case, cause: tuple[int, str]) -> None:
    """Only one component of the tuned model differs: it has the whole effect, every other exactly none."""
    pair, metric = case.pair, case.metric()
    case.keep_only(lambda name, tuned, _: torch.full_like(tuned, pair.architecture.component_of(name) == cause).bool())
    whole = values(pair.tuned, case.batches, metric) - values(pair.base, case.batches, metric)
    for method in (graft, revert):
        (found,) = method(case.work(), components(pair.architecture))
        for unit, effect in zip(found.units, found.values, strict=True):
            if (unit.layer, unit.component) == cause:
                assert np.allclose(effect, whole, rtol=1e-5, atol=1e-5)
            else:
                assert not effect.any()


def test_grafting_the_vector_itself_is_grafting_the_tuned_weights(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "random" in CONTROLS  # its files are imported
    monkeypatch.setattr(CONTROLS, "_entries", dict(CONTROLS._entries))
    control_vector("itself")(lambda step, _generator: step)
    control_vector("nothing")(lambda step, _generator: torch.zeros_like(step))
    units, work = [WHOLE, *components(case.pair.architecture)], case.work()
    (real,) = graft(work, units)
    for control, wanted in (("itself", real.values), ("nothing", 0 * real.values)):
        start, found = work.under([Variant("base", (unit,), control) for unit in units])
        assert np.allclose(found - start, wanted, rtol=0, atol=1e-5 * (control == "itself"))


def test_variants_are_data_and_none_is_read_twice(case: Case) -> None:
    work, units = case.work(), tuple(components(case.pair.architecture)[:3])
    one = Variant("base", units)
    assert one == Variant("base", units[::-1]) and pickle.loads(pickle.dumps(one)) == one
    start, values = work.under([one, Variant("base"), one])
    assert np.array_equal(values[0], values[2]) and np.array_equal(values[1], start)
    with torch.no_grad():  # were it read again, it would answer otherwise
        case.pair.base.get_output_embeddings().weight.zero_()
    again = work.named("again").under([one])
    assert np.array_equal(again[0], start) and np.array_equal(again[1][0], values[0])
    assert not np.array_equal(work.under([Variant("base", units[:2])])[1][0], values[0])


def test_controls_of_the_whole_vector_are_drawn_often(case: Case) -> None:
    work = case.work(controls=("random", "shuffled"))
    before = checksum(case.pair.base), checksum(case.pair.tuned)
    real, first, second, rows = graft(work, [WHOLE], control_draws=4)
    assert (checksum(case.pair.base), checksum(case.pair.tuned)) == before
    assert [effects.control for effects in (real, first, second)] == ["", "random", "shuffled"]
    assert rows.table == "control_draws" and len(rows.rows) == 2 * 4 * 4  # kinds, draws, three domains and all
    table = rows.rows.set_index(["control", "draw", "domain"]).effect
    assert table["random", 0, "all"] == pytest.approx(first.values.mean())
    assert table.loc["shuffled", :, "math"].nunique() == 4
    medical = [i for i, prompt in enumerate(work.prompts) if case.domains[prompt] == "medical"]
    assert table["shuffled", 0, "medical"] == pytest.approx(second.values[0, medical].mean())
    again = list(graft(work, [WHOLE], control_draws=2))[-1]
    assert again.rows.query("control == 'random'").effect.tolist() == table.loc["random"].head(8).tolist()


def test_controls_go_component_by_component_where_asked(case: Case) -> None:
    found = list(graft(case.work(controls=("random",)), [WHOLE], control_draws=1, component_controls=True))
    units = [effects.units for effects in found if isinstance(effects, Effects)]
    assert units == [(WHOLE,), (WHOLE,), tuple(components(case.pair.architecture))]
    assert found[-1].control == "random" and np.abs(found[-1].values).max() > 0
