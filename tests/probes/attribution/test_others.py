"""Depth, split, Shapley, curves, agreement, metrics: each against what it must come to."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from probes.attribution.agreement import agreement, split_half
from probes.attribution.checks import Untouched, completeness
from probes.attribution.curves import areas_of, curves, rankings_of
from probes.attribution.divergence import parted
from probes.attribution.effects import Effects, both_ways, summarise
from probes.attribution.endpoints import endpoints
from probes.attribution.forwards import values
from probes.attribution.methods.depth import cuts
from probes.attribution.methods.exact import graft, revert
from probes.attribution.methods.path import path_effects
from probes.attribution.methods.shapley import shapley
from probes.attribution.methods.split import split
from probes.attribution.metric import answerable, answers, metric_of
from probes.attribution.subspaces import projected, with_parts
from probes.attribution.units import WHOLE, Unit, components
from probes.capture.pair import make_pair
from probes.capture.runner import output_bases
from probes.errors import RunError
from probes.measures.ledger import output_basis
from probes.measures.live_weights import matrix_of
from tests.architectures.tiny import tiny_model, tuned
from tests.pairs import build_tokenizer
from tests.probes.attribution.conftest import Case
from tv.architecture.values import values_of


def test_depth_runs_from_one_model_to_the_other(case: Case) -> None:
    pair, metric = case.pair, case.metric()
    found = cuts(case.work()).set_index(["cut", "upstream", "late", "prompt_id"]).value
    prompts = [item.prompt.id for item in case.encoded]
    base, tuned = (values(model, case.batches, metric) for model in (pair.base, pair.tuned))
    last = pair.architecture.n_layers
    assert np.allclose(found[0, "base", "base"].loc[prompts], base, rtol=0, atol=1e-5)
    assert np.allclose(found[last, "tuned", "tuned"].loc[prompts], tuned, rtol=0, atol=1e-5)
    unembed, embed = (
        next(graft(case.work(), [unit])).values[0]
        for unit in (Unit("component", last, "unembed"), Unit("component", -1, "embed"))
    )
    assert np.allclose(found[last, "base", "tuned"].loc[prompts] - base, unembed, atol=1e-5)
    assert np.allclose(found[0, "tuned", "base"].loc[prompts] - base, embed, atol=1e-5)


def test_the_parts_of_a_split_are_grafted_apart(case: Case) -> None:
    pair, metric = case.pair, case.metric()
    bases = output_bases(pair)
    module = next(iter(bases))
    before, after = (dict(model.named_parameters())[module.parameter].detach() for model in (pair.base, pair.tuned))
    with torch.no_grad():  # o of layer 0 moved inside its own directions alone
        case.keep_only(lambda name, tuned, _: torch.zeros_like(tuned).bool())
        u = torch.linalg.svd(before)[0][:, : bases[module].k]
        after.copy_(before + u @ u.T @ torch.randn(before.shape, generator=torch.Generator().manual_seed(0)))
    work = case.work(granularity=("component", "module"), make_bases=lambda: bases)
    inside, inside_random, outside, outside_random = split(work, [])
    change = values(pair.tuned, case.batches, metric) - values(pair.base, case.batches, metric)
    assert np.allclose(inside.values[inside.units.index(WHOLE)], change, atol=1e-4)
    assert np.abs(outside.values).max() < 1e-4 < np.abs(inside_random.values).max()
    assert (inside.method, outside_random.control) == ("inside", "random")
    assert any(unit.granularity == "type" for unit in inside.units)


def test_the_parts_of_a_split_make_up_t_where_rows_are_interleaved() -> None:
    """GPT-OSS's gate and up have every other row of one parameter."""
    base = tiny_model("gpt_oss")
    pair = make_pair(base, tuned(base), build_tokenizer())
    gate, up = (pair.architecture.module(0, name, expert=1) for name in ("gate", "up"))
    bases = {m: output_basis(matrix_of(m, base.get_submodule(m.path))) for m in (gate, up)}
    before, after = (values_of(model)[gate.parameter] for model in pair.models)
    parts = [with_parts(pair, bases, (gate, up), part, "", 0)[gate.parameter] for part in ("inside", "outside")]
    steps = [part - before for part in parts]
    assert torch.allclose(sum(steps)[1], (after - before)[1], atol=1e-6)
    assert not any(bool(step[[0, *range(2, len(step))]].any()) for step in steps)


def test_projections_are_complementary() -> None:
    delta = torch.randn(6, 9)
    basis = torch.linalg.qr(torch.randn(6, 2))[0]
    assert torch.allclose(projected(delta, basis, True) + projected(delta, basis, False), delta, atol=1e-6)
    assert torch.allclose(basis.T @ projected(delta, basis, False), torch.zeros(2, 9), atol=1e-6)


def test_shapley_values_sum_to_the_change_and_the_planted_one_has_it_all(case: Case) -> None:
    pair, metric = case.pair, case.metric()
    change = values(pair.tuned, case.batches, metric) - values(pair.base, case.batches, metric)
    units = components(pair.architecture)
    (found,) = shapley(case.work(), units, orders=2)
    assert np.allclose(found.values.sum(0), change, rtol=0, atol=1e-5)
    case.keep_only(lambda name, tuned, _: (tuned == tuned) & (pair.architecture.component_of(name) == (1, "mlp")))
    change = values(pair.tuned, case.batches, metric) - values(pair.base, case.batches, metric)
    (planted,) = shapley(case.work(), [], orders=1)
    for unit, own in zip(planted.units, planted.values, strict=True):
        if (unit.layer, unit.component) == (1, "mlp"):
            assert np.allclose(own, change, rtol=0, atol=1e-5)
        else:
            assert not own.any()


def test_curves_go_from_nothing_to_everything_and_reward_the_right_order(case: Case) -> None:
    pair = case.pair
    case.keep_only(lambda name, tuned, _: (tuned == tuned) & (pair.architecture.component_of(name) == (1, "mlp")))
    units = components(pair.architecture)
    cause = Unit("component", 1, "mlp")
    scores = {"right": {cause: 1.0}, "wrong": {unit: float(unit != cause) for unit in units}}
    found = curves(case.work(), rankings_of(scores, units), units, draws=5)
    areas = found.areas.set_index(["ranking", "draw", "direction"])
    n = len(units)
    for direction in ("base→tuned", "tuned→base"):
        assert areas.area["right", 0, direction] == pytest.approx(1 - 0.5 / n)
        assert areas.area["wrong", 0, direction] == pytest.approx(0.5 / n)
        assert areas.n_enough["right", 0, direction] == 1
        assert areas.n_enough["wrong", 0, direction] == n
    assert found.areas.ranking.eq("random").sum() == 10
    few = curves(case.work(), rankings_of(scores, units), units, draws=1, points=3)
    assert few.points.n.nunique() <= 4 and {0, 1, n} <= set(few.points.n)
    alone = few.points[few.points.ranking == "right"]
    assert set(alone.n) == {0, 1, n}  # what has no score is moved with all, in no order


def test_an_area_is_that_of_the_mean_share() -> None:
    rows = [("a", 0, "base→tuned", n, "p", value) for n, value in ((0, 1.0), (1, 3.0), (2, 5.0))]
    points = pd.DataFrame(rows, columns=["ranking", "draw", "direction", "n", "prompt_id", "value"])
    assert areas_of(points).area.item() == pytest.approx(0.5)
    assert areas_of(points.assign(value=1.0)).area.isna().all()


def test_agreement_is_one_with_itself_shuffled_by_nobody() -> None:
    generator = np.random.default_rng(0)
    units = tuple(Unit("component", layer, "mlp") for layer in range(12))
    domains = {f"p{i}": "a" if i < 8 else "b" for i in range(16)}
    same = np.tile(np.arange(12.0)[:, None], 16)
    values = {"graft": same, "revert": same, "path": same, "noise": 9 * generator.standard_normal((12, 16))}
    effects = [Effects(method, "f", units, tuple(domains), own) for method, own in values.items()]
    clusters = {name: name for name in domains}
    found = agreement(effects, "m", domains, draws=50, seed=0, clusters=clusters)
    at = found.set_index(["method", "reference", "domain"])
    assert at.rho["path", "graft", "all"] == pytest.approx(1)
    assert set(found.domain) == {"all", "a", "b"}
    assert abs(at.rho["noise", "graft", "all"]) < 0.8
    assert at.split_half["path", "graft", "all"] == pytest.approx(1)
    noise = at.loc[("noise", "graft", "all")]
    assert noise.chosen_there < noise.chosen_here  # what noise chose is not there on other prompts
    assert at.chosen_there["path", "graft", "all"] == pytest.approx(11)


def test_halves_keep_clusters_whole() -> None:
    table = np.vstack([np.tile([1.0, 2.0, 3.0, 4.0], (10, 1)), np.tile([4.0, 3.0, 2.0, 1.0], (10, 1))])
    one = split_half(table, ["left"] * 10 + ["right"] * 10, seed=0)
    assert np.isnan(one["split_half"])  # two clusters make no two halves worth comparing
    four = split_half(table, [f"{side}{i % 2}" for side in "ab" for i in range(10)], seed=0)
    assert four["split_half"] < 0.5


def test_what_no_prompt_of_a_half_measured_is_null_without_a_warning() -> None:
    """A null row, as a method leaves where nothing moved, is no mean; where halves are constant there is no rank."""
    table = np.random.default_rng(0).normal(size=(4, 5))
    own = [f"p{i}" for i in range(4)]
    expected = {"split_half", "chosen_here", "chosen_there"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = split_half(table, own, seed=0)
        constant = split_half(np.ones((4, 5)), own, seed=0)
        table[:3, 1] = np.nan  # one prompt alone has it, so that one of any two halves has none
        partly = split_half(table, own, seed=0)
        nothing = split_half(np.full((4, 5), np.nan), own, seed=0)
    assert not np.isnan(list(whole.values())).any() and np.isnan(partly["split_half"])
    assert np.isnan(constant["split_half"]) and constant["chosen_here"] == 1
    assert nothing.keys() == expected and np.isnan(list(nothing.values())).all()


def test_mean_and_synergy_come_from_both_directions(case: Case) -> None:
    pair = case.pair
    units = components(pair.architecture)
    found = [effects for method in (graft, revert) for effects in method(case.work(), units)]
    mean, synergy = both_ways(found)
    assert np.allclose(mean.values, (found[0].values + found[1].values) / 2)
    assert np.allclose(synergy.values, found[1].values - found[0].values)
    assert both_ways(found[:1]) == []


def test_summary_is_the_mean_over_prompts_and_clusters_widen_it(case: Case) -> None:
    grafted = list(graft(case.work(), components(case.pair.architecture)))
    effects = summarise(grafted, "logit_diff", case.domains, seed=0)
    assert set(effects.domain) == {"all", "medical", "math", "general"}
    means = grafted[0].frame("logit_diff").groupby(["layer", "component"]).effect.mean()
    over_all = effects[effects.domain == "all"]
    for row in over_all.itertuples():
        assert row.effect == pytest.approx(means[row.layer, row.component])
    assert (over_all.n == len(case.encoded)).all() and effects.lo.isna().all()  # five prompts have no interval
    many = _alike(grafted[0], 12)
    alone, paired = (_summary(many, {prompt: prompt[:at] for prompt in many.prompts}) for at in (3, 1))
    assert (alone.lo < alone.effect).all() and (alone.effect < alone.hi).all() and (alone.q >= alone.p).all()
    assert (alone.n == 24).all() and (paired.n == 12).all()
    assert (paired.hi - paired.lo > 1.3 * (alone.hi - alone.lo)).all()  # √2 for prompts that say the same twice


def _alike(effects: Effects, clusters: int) -> Effects:
    """Effects of these units on pairs of prompts that say the same: a0, a1, b0, b1 …"""
    drawn = 1 + np.random.default_rng(4).normal(size=(len(effects.units), clusters))
    prompts = tuple(f"{chr(97 + i // 2)}{i % 2}" for i in range(2 * clusters))
    return replace(effects, prompts=prompts, values=np.repeat(drawn, 2, axis=1))


def _summary(effects: Effects, clusters: dict[str, str]) -> pd.DataFrame:
    return summarise([effects], "m", dict.fromkeys(effects.prompts, "one"), seed=0, clusters=clusters)


def test_checks_hold_and_can_fail(case: Case) -> None:
    pair, metric = case.pair, case.metric()
    untouched = Untouched(pair)
    found = path_effects(pair, case.encoded, metric, batch_size=3)
    assert all(check.holds for check in (*completeness(found, case.domains, 0.01), *endpoints(case.work())))
    assert untouched.check().holds
    found.shares[0].modules.clear()
    assert not completeness(found, case.domains, 0.01)[0].holds
    with torch.no_grad():
        next(pair.base.parameters()).view(-1)[3] += 1e-3
    assert untouched.check().value == 1


def test_first_divergence_is_where_the_two_part() -> None:
    case = Case(step=0.3)
    found = parted(case.pair, case.encoded, 3, tokens=4)
    assert found
    for item in found:
        ids = torch.tensor([item.ids])
        for model, said in ((case.pair.base, item.foil_id), (case.pair.tuned, item.target_id)):
            with torch.inference_mode():
                logits = model(input_ids=ids, use_cache=False).logits[0, item.answer_pos]
            assert int(logits.argmax()) == said
        assert item.target_id != item.foil_id
    with pytest.raises(RunError, match="same 4 tokens"):
        parted(Case(step=0.0).pair, case.encoded, 3, tokens=4)


def test_a_metric_of_ones_own(case: Case, tmp_path, monkeypatch) -> None:
    (tmp_path / "own_metric.py").write_text(
        "import torch\n\n\ndef last(logits, batch):\n"
        "    ends = [len(item.ids) - 1 for item in batch.encoded]\n"
        "    return torch.stack([row[end].logsumexp(-1) for row, end in zip(logits, ends)])\n\n\n"
        "def wrong(logits, batch):\n    return logits\n\n\ndef broken(logits, batch):\n    raise ValueError('no')\n"
    )
    monkeypatch.chdir(tmp_path)
    metric = metric_of("own_metric:last", case.pair.tuned, case.batches)
    with torch.inference_mode():
        logits = answers(case.pair.base, case.batches[0])
    expected = [
        float(row[len(i.ids) - 1].logsumexp(-1)) for row, i in zip(logits, case.batches[0].encoded, strict=True)
    ]
    assert np.allclose(values(case.pair.base, case.batches[:1], metric), expected)
    assert path_effects(case.pair, case.encoded, metric, batch_size=3).gap < 0.01
    for name, said in (("wrong", "one number a prompt"), ("broken", "ValueError: no"), ("absent", "imported")):
        with pytest.raises(RunError, match=said):
            values(case.pair.base, case.batches, metric_of(f"own_metric:{name}", case.pair.tuned, case.batches))
    with pytest.raises(RunError, match="metric 'math:pi' is not a function"):
        metric_of("math:pi", case.pair.tuned, case.batches)
    with pytest.raises(RunError, match="no metric"):
        metric_of("nonsense", case.pair.tuned, case.batches)


def test_prompts_without_a_foil_cannot_answer_by_it(case: Case) -> None:
    without = [replace(item, foil_id=-1) for item in case.encoded]
    with pytest.raises(RunError, match=r"no prompt has a target and a foil; .* choose the metric target_nll"):
        answerable(without, "logit_diff")
    assert answerable(without, "kl") == without


def test_kl_is_zero_at_the_tuned_model(case: Case) -> None:
    metric = case.metric("kl")
    assert np.allclose(values(case.pair.tuned, case.batches, metric), 0, atol=1e-9)
    assert (values(case.pair.base, case.batches, metric) > 0).all()
