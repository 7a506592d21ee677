"""Patching replaces what it says; its gradient form is its slope."""

import numpy as np
import pytest

from probes.attribution.effects import BACKWARD, FORWARD
from probes.attribution.forwards import values
from probes.attribution.methods.gradient import gradient
from probes.attribution.methods.patch import patch, patched_with_itself
from probes.attribution.units import Unit, components, units_of
from probes.errors import RunError
from tests.pairs import MEASURED
from tests.probes.attribution.conftest import Case, checksum


@pytest.mark.sampled(5)
@pytest.mark.parametrize("architecture", MEASURED)
def test_a_models_own_output_changes_nothing(architecture: str) -> None:
    case = Case(architecture)
    for unit in (*components(case.pair.architecture)[:-1], *units_of(case.pair.architecture, "head")[:2]):
        assert patched_with_itself(case.work(), unit) <= 1e-6, unit


@pytest.mark.parametrize("architecture", ["llama", "falcon"])
def test_what_was_patched_before_makes_no_difference(architecture: str) -> None:
    """Falcon adds to what its MLP returns, in place."""
    case = Case(architecture)
    unit = Unit("component", 1, "mlp")
    alone = patch(case.work(), [unit])
    for found, once in zip(patch(case.work(), [Unit("component", 1, "attn"), unit, unit]), alone, strict=True):
        assert np.array_equal(found.values[1], once.values[0]) and np.array_equal(found.values[2], once.values[0])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_embedding_is_all_that_differs(architecture: str) -> None:
    """With only the embedding tuned, its output taken over is the tuned model, and no other output changes as much."""
    case = Case(architecture)
    pair, metric = case.pair, case.metric()
    case.keep_only(lambda name, tuned, _: (tuned == tuned) & (pair.architecture.component_of(name)[1] == "embed"))
    change = values(pair.tuned, case.batches, metric) - values(pair.base, case.batches, metric)
    if pair.architecture.module(pair.architecture.n_layers, "unembed").tied:
        pytest.skip("tied: the unembedding moves too")
    for found in patch(case.work(), components(pair.architecture)):
        embed = found.values[found.units.index(Unit("component", -1, "embed"))]
        assert np.allclose(embed, change, atol=1e-5)


def test_directions_are_sufficiency_and_necessity(case: Case) -> None:
    pair = case.pair
    before = checksum(pair.base), checksum(pair.tuned)
    units = [*components(pair.architecture), *units_of(pair.architecture, "head")]
    forward, backward = patch(case.work(), units)
    assert (forward.direction, backward.direction) == (FORWARD, BACKWARD)
    assert all(unit.component != "unembed" for unit in forward.units)
    assert not np.allclose(forward.values, backward.values)
    assert (checksum(pair.base), checksum(pair.tuned)) == before


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox", "gemma2", "qwen3_moe"])
def test_for_a_small_step_the_gradient_is_the_patch(architecture: str) -> None:
    case = Case(architecture, step=2e-4)
    pair = case.pair
    units = [*components(pair.architecture), *units_of(pair.architecture, "head")]
    for exact, slope in zip(patch(case.work(), units), gradient(case.work(), units), strict=True):
        assert exact.units == slope.units and exact.direction == slope.direction
        scale = np.abs(exact.values).max()
        assert scale > 1e-5
        assert np.allclose(exact.values, slope.values, atol=0.05 * scale)


def test_the_gradient_needs_one(case: Case) -> None:
    with pytest.raises(RunError, match="no gradient"):
        list(gradient(case.work("exact_match"), components(case.pair.architecture)))


def test_kl_to_the_tuned_model_is_flat_at_the_tuned_model(case: Case) -> None:
    units = components(case.pair.architecture)
    at_base, at_tuned = gradient(case.work("kl"), units)
    assert np.abs(at_tuned.values).max() < 1e-6 < np.abs(at_base.values).max()
