"""Live models take the weights of the same function alone."""

import copy

import pytest
import torch

import tv
from tests.pairs import build_model
from tests.tv.matching.same_function import permute_neurons, turn_keys
from tv.errors import CheckpointError
from tv.matching.running import write_into


def test_a_model_is_written_as_the_base_is() -> None:
    base = build_model("qwen2")
    other = copy.deepcopy(base)
    permute_neurons(other)
    turn_keys(other)
    model = write_into(copy.deepcopy(other), tv.matched(base, other))
    for name, parameter in base.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter, atol=1e-5, rtol=1e-4)


def test_weights_of_another_function_are_refused() -> None:
    other = tv.open_checkpoint(build_model(seed=1))
    with pytest.raises(CheckpointError, match="it computes something else"):
        write_into(build_model(), other)
