"""The shares of the path are the weight gradients' own, sum to the change, and belong to whoever was moved."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probes.attribution.forwards import values
from probes.attribution.integrand import Integrand
from probes.attribution.methods.path import _allowed, path_effects
from probes.attribution.metric import Metric
from probes.attribution.shares import Integrated, Shares
from probes.attribution.units import Unit, units_of
from probes.errors import RunError
from tests.pairs import MEASURED, MIXTURES, SUPPORTED
from tests.probes.attribution.conftest import Case, checksum
from tv.architecture.anatomy import Module
from tv.prompts.encoding import Encoded, batches
from tv.prompts.files import Prompt


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("architecture", "metric"), [*((name, "logit_diff") for name in SUPPORTED), ("llama", "kl"), ("gemma2", "kl")]
)
def test_shares_sum_to_the_change(architecture: str, metric: str) -> None:
    case = Case(architecture)
    found = path_effects(case.pair, case.encoded, case.metric(metric), batch_size=3, tolerance=1e-3)
    assert found.gap <= 1e-3
    for shares, change in zip(found.shares, found.tuned - found.base, strict=True):
        assert shares.total() == pytest.approx(change, abs=2e-3 * np.abs(found.tuned - found.base).sum())
    assert np.allclose(found.base, values(case.pair.base, case.batches, case.metric(metric)), atol=1e-6)


@pytest.mark.sampled(6)
@pytest.mark.parametrize("architecture", MEASURED)
def test_shares_are_those_of_the_weight_gradients(architecture: str) -> None:
    """One node: ⟨T, ∂M/∂θ⟩ of every parameter, by autograd on the weights themselves, at the middle of the path."""
    case = Case(architecture)
    pair, metric = case.pair, case.metric()
    found = path_effects(pair, case.encoded, metric, batch_size=3, nodes=1, most_nodes=1)
    expected = _by_weight_gradients(case, metric)
    by_parameter: dict[str, float] = {}
    for shares in found.shares:
        for module, value in (*shares.modules.items(), *shares.wholes.items()):
            by_parameter[module.parameter] = by_parameter.get(module.parameter, 0.0) + float(value.double().sum())
    biases = {name: value for name, value in expected.items() if name not in by_parameter}
    for name in biases:  # a bias is in its module's share
        owner = next(m for m in pair.architecture.modules if name in (f"{m.path}.bias", f"{m.parameter}_bias"))
        expected[owner.parameter] += expected.pop(name)
    scale = max(abs(value) for value in expected.values())
    assert by_parameter.keys() == expected.keys()
    for name, value in expected.items():
        assert by_parameter[name] == pytest.approx(value, abs=2e-5 * scale), name


def _by_weight_gradients(case: Case, metric: Metric) -> dict[str, float]:
    pair = case.pair
    before = {name: value.detach().clone() for name, value in pair.base.named_parameters()}
    after = dict(pair.tuned.named_parameters())
    total = dict.fromkeys(before, 0.0)
    with torch.no_grad():
        for name, value in pair.base.named_parameters():
            value.copy_(torch.lerp(before[name], after[name], 0.5))
    try:
        for batch in case.batches:
            pair.base.zero_grad()
            logits = pair.base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
            metric.values(logits, batch).sum().backward()
            for name, value in pair.base.named_parameters():
                total[name] += float((value.grad.double() * (after[name].detach() - before[name]).double()).sum())
    finally:
        pair.base.zero_grad()
        with torch.no_grad():
            for name, value in pair.base.named_parameters():
                value.copy_(before[name])
    return total


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "neox", "mixtral"])
def test_heads_neurons_and_experts_make_up_their_modules(architecture: str) -> None:
    case = Case(architecture)
    found = path_effects(case.pair, case.encoded, case.metric(), batch_size=3, nodes=2, most_nodes=2)
    architecture_of = case.pair.architecture
    for shares in found.shares:
        for module, heads in shares.heads.items():
            own = float(shares.modules[module].double().sum())
            if module.name == "o" and f"{module.path}.bias" in dict(case.pair.base.named_parameters()):
                continue  # the bias of o is no head's
            assert float(heads.double().sum()) == pytest.approx(own, abs=1e-6)
    by_granularity = {own.units[0].granularity: own for own in found.effects(architecture_of)}
    total = by_granularity["module"].values.sum(0)
    assert np.allclose(total, by_granularity["component"].values.sum(0), atol=1e-6)
    assert np.allclose(total, [shares.total() for shares in found.shares], atol=1e-6)
    if architecture == "mixtral":
        assert len(by_granularity["expert"].units) == len(units_of(architecture_of, "expert"))
    else:
        assert "expert" not in by_granularity
    tokens = found.tokens().groupby("prompt_id").effect.sum()
    assert np.allclose(tokens.loc[list(found.prompts)], total, atol=1e-6)


def test_a_planted_neuron_has_it_all(case: Case) -> None:
    """Only neuron 7 of the MLP in layer 1 was tuned: gate row, up row, down column."""
    pair = case.pair
    case.keep_only(_only_neuron(1, 7))
    found = path_effects(pair, case.encoded, case.metric(), batch_size=3)
    change = found.tuned - found.base
    assert np.abs(change).max() > 1e-4
    assert found.gap < 1e-3
    neurons = found.neurons(case.domains).query("domain == 'all'")
    first = neurons.loc[neurons.effect.abs().idxmax()]
    assert (first.layer, first.neuron) == (1, 7)
    assert first.effect == pytest.approx(change.mean(), rel=1e-3)
    assert (neurons.effect.drop(first.name) == 0).all()
    effects = {own.units[0].granularity: own for own in found.effects(pair.architecture)}["component"]
    for unit, own in zip(effects.units, effects.values, strict=True):
        wanted = change if (unit.layer, unit.component) == (1, "mlp") else 0 * change
        assert np.allclose(own, wanted, atol=1e-3 * np.abs(change).max())


def test_a_planted_head_has_it_all(case: Case) -> None:
    pair = case.pair
    module = pair.architecture.module(2, "o")
    width = module.shape[1] // module.n_heads

    def wanted(name: str, tuned: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(tuned, dtype=torch.bool)
        if name == module.parameter:
            mask[:, 3 * width : 4 * width] = True
        return mask

    case.keep_only(wanted)
    found = path_effects(pair, case.encoded, case.metric(), batch_size=3)
    heads = {own.units[0].granularity: own for own in found.effects(pair.architecture)}["head"]
    at = heads.units.index(Unit("head", 2, "attn", head=3))
    assert np.allclose(heads.values[at], found.tuned - found.base, rtol=1e-3, atol=1e-6)
    assert (np.delete(heads.values, at, 0) == 0).all()


def _only_neuron(layer: int, neuron: int):
    def wanted(name: str, tuned: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(tuned, dtype=torch.bool)
        if f"layers.{layer}.mlp." in name:
            if "down" in name:
                mask[:, neuron] = True
            else:
                mask[neuron] = True
        return mask

    return wanted


def test_equal_models_have_no_shares_and_the_models_stay_as_they_were() -> None:
    case = Case(step=0.0)
    before = checksum(case.pair.base), checksum(case.pair.tuned)
    wanted = [p.requires_grad for p in case.pair.base.parameters()]
    found = path_effects(case.pair, case.encoded, case.metric(), batch_size=3)
    assert all(shares.total() == 0 for shares in found.shares)
    assert found.gap == 0
    assert (checksum(case.pair.base), checksum(case.pair.tuned)) == before
    assert [p.requires_grad for p in case.pair.base.parameters()] == wanted
    assert all(p.grad is None for p in case.pair.base.parameters())


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", MIXTURES)
def test_a_router_that_jumps_is_told_and_not_integrated_for_ever(architecture: str, caplog) -> None:
    """Over a change of experts the metric jumps, and no number of nodes makes the shares add up."""
    case = Case(architecture)
    found = path_effects(case.pair, case.encoded, case.metric(), batch_size=3, tolerance=1e-4)
    if found.gap > 1e-4:
        assert "jumps" in caplog.text
        assert found.nodes.max() <= 64


def test_more_nodes_only_where_they_are_needed(case: Case) -> None:
    rough = path_effects(case.pair, case.encoded, case.metric(), batch_size=3, nodes=1, most_nodes=1)
    wanted = 0.9 * rough.gap
    found = path_effects(case.pair, case.encoded, case.metric(), batch_size=3, nodes=1, tolerance=wanted)
    assert 1 in found.nodes and found.nodes.max() > 1
    assert found.gap <= wanted < rough.gap


def test_a_domain_that_changed_little_adds_up_to_its_own_change() -> None:
    """Of all prompts' change it is next to nothing, so that a share of that would leave it unread."""
    texts = [(f"p{i}", "little" if i % 2 else "much", f"w {i}") for i in range(4)]
    encoded = [Encoded(Prompt(name, "s", domain, text), (1, 2), 2, 1, 1, 2) for name, domain, text in texts]
    moved = np.array([10.0, 0.1, 10.0, 0.3])
    allowed = _allowed(encoded, moved, 0.01, 1e-5)
    assert allowed == pytest.approx({"much": 0.01 * 10, "little": 0.01 * 0.2})
    assert _allowed(encoded, moved, 0.01, 0.25)["little"] == pytest.approx(0.01 * 5.1)  # rounding alone: nothing to add


def test_windows_are_apart_and_a_window_has_its_domains_sum(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of a window share what they may miss, and nothing with another window, however many go together."""
    monkeypatch.setattr("probes.attribution.methods.path.WINDOW", 1)
    monkeypatch.setattr("probes.attribution.methods.path.SHARES", 0)
    done: list[tuple[int, int]] = []
    how = {"batch_size": 2, "nodes": 1, "tolerance": 0.02}
    alone, together = (
        path_effects(case.pair, case.encoded, case.metric(), at_once=n, told=lambda *at: done.append(at[:2]), **how)
        for n in (1, 3)
    )
    assert (alone.nodes == together.nodes).all() and alone.nodes.max() > 1
    for own, other in zip(alone.shares, together.shares, strict=True):
        assert all(torch.equal(own.modules[module], value) for module, value in other.modules.items())
    assert done[-1] == (len(case.encoded),) * 2
    missed = np.abs([shares.total() for shares in alone.shares] - alone.change)
    domains = np.array([case.domains[name] for name in alone.prompts])
    for domain in set(domains.tolist()):
        inside = domains == domain
        assert missed[inside].sum() <= 0.02 * np.abs(alone.change[inside]).sum()


@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
def test_what_comes_after_the_last_position_read_is_left_out(case: Case, metric: str) -> None:
    """The passes are shorter; the shares are those of whole prompts, and tokens behind have none."""
    integrand = Integrand(case.pair, case.metric(metric))
    reads = integrand.metric.reads
    assert reads is not None
    (batch,) = batches(case.encoded, len(case.encoded), case.pair.pad_id)
    lengths = [len(item.ids) for item in batch.encoded]
    with integrand.along():
        integrand.move(0.3)
        value, shares = integrand.shares(batch)
        assert integrand.shape[1] == 1 + max(max(reads(item)) for item in batch.encoded) < batch.input_ids.shape[1]
        integrand.metric = replace(integrand.metric, reads=None)  # it may read any
        whole, wanted = integrand.shares(batch)
        assert integrand.shape[1] == batch.input_ids.shape[1]
    assert torch.allclose(value, whole, atol=1e-5)
    layout, vectors = shares.flat(lengths)
    same, others = wanted.flat(lengths)
    assert layout == same
    assert all(torch.allclose(own, other, atol=1e-5) for own, other in zip(vectors, others, strict=True))
    totals = [Shares.of(layout, own, n).total() for own, n in zip(vectors, lengths, strict=True)]
    assert shares.totals() == pytest.approx(totals, abs=1e-5)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("metric", ["logit_diff", "target_nll"])
def test_the_unembedding_is_read_in_pieces(
    case: Case, metric: str, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    integrand, found = Integrand(case.pair, case.metric(metric)), []
    integrand.keeps = keeps
    for size in (2**24, 4 * case.pair.architecture.d_model * 50):
        monkeypatch.setattr("probes.attribution.integrand.PIECE", size)
        with integrand.along():
            integrand.move(0.5)
            found.append(integrand.shares(case.batches[0])[1].modules)
    whole, pieces = found
    assert whole.keys() == pieces.keys()
    assert all(torch.allclose(pieces[module], shares, rtol=1e-4, atol=1e-6) for module, shares in whole.items())


def test_what_has_no_gradient_is_refused(case: Case) -> None:
    with pytest.raises(RunError, match="no gradient"):
        path_effects(case.pair, case.encoded, case.metric("exact_match"), batch_size=3)
    case.pair.tuned.bfloat16()
    with pytest.raises(RunError, match="float32"):
        path_effects(case.pair, case.encoded, case.metric(), batch_size=3)


def test_a_grown_vocabulary_moves_in_the_rows_in_common() -> None:
    case = Case()
    case.pair.tuned.resize_token_embeddings(331, mean_resizing=False)
    found = path_effects(case.pair, case.encoded, case.metric(), batch_size=3)
    assert found.gap < 1e-3
    assert {type(module) for shares in found.shares for module in shares.modules} == {Module}


def test_it_is_what_many_nodes_give(case: Case) -> None:
    """The adaptive rule agrees with one that has far more nodes, unit by unit, within the tolerance."""
    found = path_effects(case.pair, case.encoded, case.metric(), batch_size=3)
    exact = path_effects(case.pair, case.encoded, case.metric(), batch_size=3, nodes=24, most_nodes=24)
    assert found.nodes.mean() < 12 and (exact.nodes == 24).all()
    whole = np.abs(exact.change).mean()
    for own, wanted in zip(found.effects(case.pair.architecture), exact.effects(case.pair.architecture), strict=True):
        assert own.units == wanted.units
        assert np.abs(own.values.mean(1) - wanted.values.mean(1)).max() <= 0.01 * whole


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_finished_integrals_are_given_back(architecture: str) -> None:
    """What was kept of a killed run, as arrays, is not computed again; the rest is, and all is as without."""
    case, kept = Case(architecture), {}
    pair, metric = case.pair, case.metric()
    whole = path_effects(pair, case.encoded, metric, batch_size=1, keep=kept.update)
    assert set(kept) == set(whole.prompts)
    some = list(kept)[:2]
    stored = {name: kept[name].arrays(pair.architecture) for name in some}
    done = {name: Integrated.of(name, arrays, pair.architecture) for name, arrays in stored.items()}
    again: list[str] = []
    found = path_effects(pair, case.encoded, metric, batch_size=1, done=done, keep=again.extend)
    assert sorted([*again, *some]) == sorted(whole.prompts)
    assert (found.nodes == whole.nodes).all()
    for own, wanted in zip(found.shares, whole.shares, strict=True):
        assert own.modules.keys() == wanted.modules.keys() and own.wholes.keys() == wanted.wholes.keys()
        assert all(torch.allclose(own.modules[m], value, atol=1e-6) for m, value in wanted.modules.items())
        assert all(torch.allclose(own.heads[m], value, atol=1e-6) for m, value in wanted.heads.items())
        assert all(torch.allclose(own.neurons[at], value, atol=1e-6) for at, value in wanted.neurons.items())


def test_the_ends_that_are_known_are_not_read_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = path_effects(case.pair, case.encoded, case.metric(), batch_size=3)
    monkeypatch.setattr("probes.attribution.methods.path._by_prompt", None)
    ends = whole.base, whole.tuned
    found = path_effects(case.pair, case.encoded, case.metric(), batch_size=3, ends=ends)
    assert np.allclose([own.total() for own in found.shares], [own.total() for own in whole.shares])


def test_what_did_not_move_has_shares_of_nothing_and_forms_no_step(case: Case) -> None:
    only = case.pair.architecture.module(1, "up")
    case.keep_only(lambda name, tuned, _: (tuned == tuned) & (name == only.parameter))
    integrand = Integrand(case.pair, case.metric())
    assert integrand.moved == {only.parameter}
    with integrand.along():
        assert set(integrand.theta) == {only.parameter}
    found = path_effects(case.pair, case.encoded, case.metric(), batch_size=3)
    effects = {own.units[0].granularity: own for own in found.effects(case.pair.architecture)}["module"]
    assert set(effects.units) == set(units_of(case.pair.architecture, "module"))
    for unit, own in zip(effects.units, effects.values, strict=True):
        assert (np.abs(own).max() > 0) == (unit.layer == 1 and unit.module == "up")


def test_a_step_that_is_not_kept_is_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = path_effects(case.pair, case.encoded, case.metric(), batch_size=3)
    monkeypatch.setattr("probes.attribution.integrand.KEPT", 0)
    formed = path_effects(case.pair, case.encoded, case.metric(), batch_size=3)
    assert [own.total() for own in formed.shares] == [own.total() for own in kept.shares]
