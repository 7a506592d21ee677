"""Pairs that compute the same function: no effect is above rounding, nothing is shared out, every check holds."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from probes.attribution.attributor import Attributor
from probes.attribution.effects import Effects, floor_of, summarise
from probes.attribution.methods.path import path, path_effects
from probes.attribution.shares import gap_of
from probes.attribution.units import Unit
from probes.attribution.work import Rows
from probes.capture.pair import make_pair
from probes.suite import Attribution
from tests.pairs import build_model, build_tokenizer
from tests.probes.attribution.conftest import Case
from tv.stats.change import LEAST_FLOOR


def _permuted(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        order = torch.randperm(layer.mlp.up_proj.out_features, generator=torch.Generator().manual_seed(5))
        for rows in (layer.mlp.gate_proj, layer.mlp.up_proj):
            rows.weight.copy_(rows.weight[order])
        layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])


def _gains_in_their_readers(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        attn, mlp = layer.self_attn, layer.mlp
        _scaled([layer.input_layernorm, layer.post_attention_layernorm], 2.0)
        _scaled([attn.q_proj, attn.k_proj, attn.v_proj, mlp.gate_proj, mlp.up_proj], 0.5)


def _values_and_neurons_scaled(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        _scaled([layer.self_attn.v_proj, layer.mlp.up_proj], 2.0)
        _scaled([layer.self_attn.o_proj, layer.mlp.down_proj], 0.5)


def _itself(model: PreTrainedModel) -> None:
    pass


def _scaled(modules: list[nn.Module], by: float) -> None:
    for module in modules:
        module.weight.mul_(by)


SAME = [_permuted, _gains_in_their_readers, _values_and_neurons_scaled, _itself]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield caplog


@pytest.mark.sampled(1)
@pytest.mark.parametrize("rewrite", SAME)
def test_the_same_function_written_differently_has_no_effects(
    rewrite: Callable[[PreTrainedModel], None], quiet: pytest.LogCaptureFixture
) -> None:
    base = build_model("llama")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        rewrite(tuned)
    pair, encoded = make_pair(base, tuned, build_tokenizer()), Case().encoded
    wanted = Attribution.model_validate({"curve_points": 2, "curve_draws": 1, "control_draws": 2})
    tables = Attributor(pair, encoded, wanted, batch_size=3, seed=0).tables(
        bootstrap=20, bases=dict, scores={}, progress=None
    )
    checks, effects = tables["checks"], tables["effects"]
    assert checks.holds.all() and not (checks.check == "completeness").any()
    real = effects[(effects.control == "") & (effects.granularity == "component")]
    assert real[real.method != "path"].within_noise.all()
    assert effects[effects.method == "path"].effect.isna().all()
    assert set(tables["prompt_effects"].method) == {"graft", "revert", "mean", "synergy"}
    assert tables["areas"].area.isna().all() and tables["token_effects"].effect.isna().all()
    assert tables["neuron_effects"][["effect", "se"]].isna().all(axis=None)
    assert not quiet.records  # no share of nothing is missed


def test_path_alone_on_a_pair_that_does_not_change(quiet: pytest.LogCaptureFixture) -> None:
    pair, encoded = Case(step=0.0).pair, Case().encoded
    wanted = Attribution.model_validate({"methods": ["path"]})
    tables = Attributor(pair, encoded, wanted, batch_size=3, seed=0).tables(bootstrap=20, bases=dict, scores={})
    assert len(tables["effects"]) and tables["effects"].effect.isna().all() and not len(tables["prompt_effects"])
    assert tables["checks"].holds.all()


def test_a_domain_within_its_floor_has_no_shares_and_the_others_keep_theirs(case: Case) -> None:
    floors = {"math": 100.0}
    found = list(path(case.work(floors=floors), []))
    effects = [each for each in found if isinstance(each, Effects)]
    means = summarise(effects, "logit_diff", case.domains, seed=0, floors=floors)
    assert means[means.domain == "math"].effect.isna().all() and means[means.domain != "math"].effect.notna().all()
    rows = {each.table: each.rows for each in found if isinstance(each, Rows)}
    inside = rows["token_effects"].prompt_id.map(case.domains) == "math"
    assert rows["token_effects"].effect.isna().equals(inside)
    assert set(rows["neuron_effects"].domain[rows["neuron_effects"].effect.isna()]) == {"math"}


def test_the_gap_is_that_of_rounding_where_the_change_is_smaller(case: Case) -> None:
    found = path_effects(case.pair, case.encoded, case.metric(), batch_size=3)
    total = np.array([shares.total() for shares in found.shares])
    assert gap_of(found.shares, total + 1e-9, 0.01) == pytest.approx(5e-9 / max(np.abs(total).sum(), 0.05), rel=1e-3)
    assert gap_of(found.shares, 0 * total, 10.0) == pytest.approx(np.abs(total).sum() / 50)
    assert gap_of([], np.array([]), 0.01) == 0.0


def test_effects_are_within_noise_by_the_floor_of_their_domain() -> None:
    units = tuple(Unit("component", layer, "mlp") for layer in range(3))
    prompts = tuple(f"p{i}" for i in range(24))
    values = np.array([[2e-6], [0.004], [0.5]]) * (1 + 0.1 * np.random.default_rng(0).normal(size=(3, 24)))
    domains = {prompt: "a" if i < 12 else "b" for i, prompt in enumerate(prompts)}
    effects = summarise([Effects("graft", "f", units, prompts, values)], "m", domains, seed=0, floors={"b": 0.01})
    noise = effects.pivot(index="domain", columns="layer", values="within_noise")
    assert noise.loc["a"].tolist() == noise.loc["all"].tolist() == [True, False, False]
    assert noise.loc["b"].tolist() == [True, True, False]
    assert floor_of(None, "a") == floor_of({"b": 1.0}, "a") == LEAST_FLOOR
    assert isinstance(effects, pd.DataFrame) and (effects.n == effects.domain.map({"all": 24, "a": 12, "b": 12})).all()
