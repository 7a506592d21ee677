"""Live models with quicker products."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import Conv1D

from tv.checkpoints import quickened as quick
from tv.checkpoints.quickened import quickened


class _Own(nn.Linear):
    """A layer of somebody else's, which may do more than multiply."""


def _layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(200, 300), nn.Tanh(), Conv1D(120, 300), _Own(120, 80))


def test_the_same_model_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "is_quicker", lambda: True)
    model, x = _layers(), torch.randn(5, 20, 200)
    wanted, names, weights = model(x), str(model), dict(model.named_parameters())
    found = quickened(model)
    assert found is model
    assert [type(layer).__name__ for layer in model] == ["Linear", "Tanh", "Conv1D", "_Own"]
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model[2], Conv1D)
    assert str(model) == names
    assert all(value is weights[name] for name, value in model.named_parameters())
    torch.testing.assert_close(model(x), wanted)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model[0]))):
        assert type(other) in (nn.Sequential, quick.Linear)


def test_nothing_changes_where_it_is_not_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "is_quicker", lambda: False)
    assert [type(layer) for layer in quickened(_layers())] == [nn.Linear, nn.Tanh, Conv1D, _Own]
