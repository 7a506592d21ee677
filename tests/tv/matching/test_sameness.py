"""Pairs that compute the same function are said to, by what was changed; other pairs are not."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from tests.pairs import build_model, perturb
from tests.tv.matching.same_function import (
    change_value_bases,
    move_gains,
    permute_neurons,
    trade_sizes,
    turn_keys,
)
from tv.checkpoints.live import load_model
from tv.matching.matching import match_pair
from tv.matching.sameness import Sameness

NEURONS, NORMS = "neurons permuted or scaled (layers 0–2)", "norm gains moved into what reads them (layers 0–2)"
VALUES = "value and output matrices in another basis (layers 0–2)"
KEYS = "query and key matrices in another basis (layers 0–2)"


def _all(model: PreTrainedModel) -> None:
    permute_neurons(model)
    move_gains(model, torch.exp(0.5 * torch.randn(48)))
    trade_sizes(model, 2.0)
    change_value_bases(model)
    turn_keys(model)


def _three(model: PreTrainedModel) -> None:
    move_gains(model, 2.0)
    trade_sizes(model, 2.0)
    permute_neurons(model)


CHANGES: dict[str, tuple[Callable[[PreTrainedModel], None], set[str]]] = {
    "permuted": (permute_neurons, {NEURONS}),
    "gains x2": (lambda model: move_gains(model, 2.0), {NORMS}),
    "v and up x2": (lambda model: trade_sizes(model, 2.0), {NEURONS, VALUES}),
    "v and up x1.03": (lambda model: trade_sizes(model, 1.03), {NEURONS, VALUES}),
    "values": (change_value_bases, {VALUES}),
    "keys": (turn_keys, {KEYS}),
    "all": (_all, {NEURONS, NORMS, VALUES, KEYS}),
    "the three at once": (_three, {NEURONS, NORMS, VALUES}),
}
EXACT = {"permuted", "gains x2", "v and up x2", "the three at once"}


def _written(model: PreTrainedModel, change: str) -> tuple[PreTrainedModel, set[str]]:
    other = copy.deepcopy(model)
    torch.manual_seed(5)
    make, kinds = CHANGES[change]
    make(other)
    return other, kinds


@pytest.mark.sampled(7)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_same_function_written_differently(change: str, architecture: str) -> None:
    base = build_model(architecture)
    other, kinds = _written(base, change)
    found = match_pair(base, other).sameness
    said, _, rest = found.sentence.partition(": ")
    assert said == "these two compute the same function, written differently"
    assert {*rest.split("; ")} - {"what is left of T is the rounding of F32"} == kinds
    assert found.before > 0.5 and found.after < 1e-10
    if change in EXACT and architecture == "llama":
        assert found.after == 0


@pytest.mark.parametrize("change", CHANGES)
def test_through_the_rounding_of_bfloat16(change: str) -> None:
    base = build_model()
    other, kinds = _written(base, change)
    found = match_pair(base, other.bfloat16()).sameness
    said, _, rest = found.sentence.partition(": ")
    assert said == "these two compute the same function, written differently"
    assert {*rest.split("; ")} == {*kinds, "what is left of T is the rounding of BF16"}
    assert found.explained > 0.99


def test_rounding_alone_and_nothing_at_all() -> None:
    base = build_model()
    rounded = copy.deepcopy(base).bfloat16()
    for pair in ((base, rounded), (rounded, base)):
        found = match_pair(*pair)
        assert found.is_identity and found.sameness.explained == 0
        assert found.sameness.sentence == "these two compute the same function, rounded to BF16"
    found = match_pair(base, base)
    assert found.is_identity and found.sameness.sentence == "the two hold the same weights: T is zero"


def test_one_step_of_bfloat16_is_not_rounding() -> None:
    base = build_model().bfloat16()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        entry = tuned.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4]
        entry.mul_(1.01)
    found = match_pair(base, tuned).sameness
    assert 0 < found.before < 1e-3 and found.sentence == "no part of T is a reparametrisation: it can be read as it is"
    permute_neurons(tuned)
    found = match_pair(base, tuned).sameness
    assert found.sentence == f"more than 99.9 % of ‖T‖² is a reparametrisation: {NEURONS}"


def test_training_before_or_after_is_what_is_left() -> None:
    base = build_model()
    tuned = copy.deepcopy(base)
    perturb(tuned, 0.05, seed=3)
    alone = match_pair(base, tuned).sameness
    permute_neurons(tuned)
    move_gains(tuned, 2.0)
    found = match_pair(base, tuned).sameness
    assert found.changes == {"neurons": [0, 1, 2], "norms": [0, 1, 2]} and not found.rounding
    assert found.after == pytest.approx(alone.before, rel=0.1)
    assert found.sentence.startswith(f"{100 * found.explained:.3g} % of ‖T‖² is a reparametrisation")


def test_another_setting_is_another_function() -> None:
    base = build_model()
    other = copy.deepcopy(base)
    other.config.rms_norm_eps = 0.1
    permute_neurons(other)
    assert not match_pair(base, other).sameness.rounding


@pytest.mark.parametrize("name", ["medical", "math"])
def test_fine_tunes_are_left_alone(name: str) -> None:
    found = match_pair("data/models/base", f"data/models/{name}")
    assert found.is_identity and found.sameness.explained == 0 and not found.sameness.rounding


def test_an_embedded_model_written_differently() -> None:
    other = load_model("data/models/medical")
    torch.manual_seed(0)
    permute_neurons(other)
    move_gains(other, 2.0)
    trade_sizes(other, 2.0)
    turn_keys(other)
    found = match_pair("data/models/medical", other).sameness
    assert found.rounding and found.explained > 0.9999
    assert {*found.changes} == {"norms", "neurons", "values", "keys"}
    over_base = match_pair("data/models/base", other).sameness
    expected = match_pair("data/models/base", "data/models/medical").sameness.before
    assert over_base.before > 20 * expected and over_base.after == pytest.approx(expected, rel=0.1)


def test_layers_are_said_as_runs() -> None:
    found = Sameness(2.0, 1.0, {"values": [0, 1, 2, 5, 7, 8], "keys": [4]})
    assert found.sentence == (
        "50 % of ‖T‖² is a reparametrisation: value and output matrices in another basis (layers 0–2, 5, 7–8); "
        "query and key matrices in another basis (layer 4)"
    )
