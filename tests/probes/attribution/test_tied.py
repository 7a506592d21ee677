"""A tied matrix is one unit, the embedding, whichever method attributes to it."""

import numpy as np
import pytest
import torch

from probes.attribution.attributor import Attributor
from probes.attribution.forwards import values
from probes.attribution.methods.exact import graft
from probes.attribution.methods.path import path_effects
from probes.attribution.units import Unit, components, units_of
from probes.capture.runner import output_bases
from probes.methods import all_methods
from probes.suite import Attribution
from tests.pairs import CONFIGS
from tests.probes.attribution.conftest import Case

TIED = ["qwen2", "gpt2", "gemma", "llama_tied", "qwen3_tied"]


@pytest.fixture(params=TIED)
def tied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    if request.param.endswith("_tied"):
        name, sizes = CONFIGS[request.param.removesuffix("_tied")]
        monkeypatch.setitem(CONFIGS, request.param, (name, {**sizes, "tie_word_embeddings": True}))
    return Case(request.param)


def test_path_gives_a_tied_matrix_what_graft_gives_it(tied: Case) -> None:
    """Where nothing else moved, both give it the whole change."""
    name = tied.pair.architecture.module(-1, "embed").parameter
    tied.keep_only(lambda parameter, tuned, _: torch.full_like(tuned, parameter == name).bool())
    change = values(tied.pair.tuned, tied.batches, tied.metric()) - values(tied.pair.base, tied.batches, tied.metric())
    shares = path_effects(tied.pair, tied.encoded, tied.metric(), batch_size=3, tolerance=1e-3)
    for found, unit in zip(
        shares.effects(tied.pair.architecture),
        (Unit("component", -1, "embed"), Unit("module", -1, "embed", "embed")),
        strict=False,
    ):
        (grafted,) = graft(tied.work(), [unit])
        assert np.allclose(grafted.values[0], change, rtol=0, atol=1e-5) and np.abs(change).max() > 1e-3
        others = [row for row, other in zip(found.values, found.units, strict=True) if other != unit]
        assert np.allclose(found.values[found.units.index(unit)], change, atol=2e-3 * np.abs(change).sum())
        assert np.abs(others).max() == 0
    tokens = shares.tokens()
    assert set(tokens[tokens.effect != 0].component) == {"embed"}
    assert not tokens.duplicated(["prompt_id", "pos", "layer", "component"]).any()


def test_the_two_places_of_a_tied_matrix_both_count(tied: Case) -> None:
    """As an input it moves the tokens that were read, as an output the place of the answer."""
    shares = path_effects(tied.pair, tied.encoded, tied.metric(), batch_size=3, nodes=1, most_nodes=1)
    for item, found in zip(tied.encoded, shares.shares, strict=True):
        embed = next(value for module, value in found.modules.items() if module.name == "embed")
        alone = float(embed[item.answer_pos])
        assert float(embed.abs().sum()) > abs(alone) > 0


#: Methods whose units are no weights.
OF_STATES = ("direction", "feature")


def test_every_method_names_it_alike() -> None:
    case = Case("qwen2")
    wanted = Attribution(
        methods=tuple(method.name for method in all_methods() if method.name not in OF_STATES),
        granularity=("component", "module"),
        controls=(),
        curves=False,
        orders=1,
        exact="all",
    )
    work = Attributor(case.pair, case.encoded, wanted, batch_size=3, seed=0)
    effects = work.tables(bootstrap=5, bases=lambda: output_bases(case.pair), scores={})["effects"]
    names = {
        (method, granularity): set(zip(rows.layer, rows.component, rows.module, strict=True))
        for (method, granularity), rows in effects.groupby(["method", "granularity"])
    }
    architecture = case.pair.architecture
    for granularity, units in (
        ("component", components(architecture)),
        ("module", units_of(architecture, "module")),
    ):
        every = {(unit.layer, unit.component, unit.module) for unit in units}
        for method in ("path", "graft", "revert", "mean", "synergy"):
            assert names[method, granularity] == every, method
        for (method, other), some in names.items():
            assert other != granularity or some <= every, method
    assert names["shapley", "component"] == names["graft", "component"]
    assert not any(module == "unembed" for some in names.values() for _, _, module in some)


def test_the_owner_of_a_parameter() -> None:
    case = Case("qwen2")
    architecture = case.pair.architecture
    assert architecture.owner(architecture.module(3, "unembed")) == architecture.module(-1, "embed")
    untied = Case("llama").pair.architecture
    assert all(untied.owner(module) is module for module in untied.modules)


def test_the_bias_of_a_tied_unembedding_moves_with_its_module_and_has_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Phi's unembedding has a bias, which no tie takes away."""
    sizes = {key: value for key, value in CONFIGS["neox"][1].items() if key != "head_dim"}
    monkeypatch.setitem(CONFIGS, "phi", ("PhiConfig", {**sizes, "tie_word_embeddings": True}))
    case = Case("phi")
    case.keep_only(lambda parameter, tuned, _: torch.full_like(tuned, parameter == "lm_head.bias").bool())
    change = values(case.pair.tuned, case.batches, case.metric()) - values(case.pair.base, case.batches, case.metric())
    assert np.abs(change).max() > 1e-3
    shares = path_effects(case.pair, case.encoded, case.metric(), batch_size=3, tolerance=1e-3)
    for found in shares.effects(case.pair.architecture):
        for row, unit in zip(found.values, found.units, strict=True):
            (grafted,) = graft(case.work(), [unit])
            assert np.allclose(row, grafted.values[0], atol=2e-3 * np.abs(change).sum()), unit
        if found.units[0].granularity in ("component", "module"):
            assert np.allclose(np.sum(found.values, 0), change, atol=2e-3 * np.abs(change).sum())
