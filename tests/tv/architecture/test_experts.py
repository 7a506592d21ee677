"""The rules for mixtures of experts, held against what the models compute."""

import pytest
import torch
from torch.nn.functional import linear, sigmoid, silu

from tests.pairs import MIXTURES, build_model
from tv.architecture.anatomy import Architecture, Module
from tv.architecture.resolve import resolve
from tv.architecture.rules import by_rules
from tv.errors import ArchitectureError


@pytest.mark.parametrize("architecture", MIXTURES)
def test_gate_up_and_down_of_an_expert_make_its_output(architecture: str) -> None:
    model = build_model(architecture)
    arch = resolve(model)
    mixed = [layer for layer in range(3) if _matrices(arch, layer, "gate")[0].expert == 0]
    assert mixed == ([0, 2] if architecture == "qwen2_moe" else [0, 1, 2])
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    for layer in mixed:
        experts = model.get_submodule(arch.module(layer, "gate", 0).path)
        gates, ups, downs = (_matrices(arch, layer, name) for name in ("gate", "up", "down"))
        assert [module.expert for module in gates] == [0, 1, 2]
        for gate, up, down in zip(gates, ups, downs, strict=True):
            chosen = torch.full((5, 1), gate.expert)
            theirs = experts(x, chosen, torch.ones(5, 1))
            stored = [model.get_parameter(module.parameter) for module in (gate, up, down)]
            g, u, d = (module.matrix(tensor) for module, tensor in zip((gate, up, down), stored, strict=True))
            torch.testing.assert_close(linear(silu(linear(x, g)) * linear(x, u), d), theirs)
            alone = gate.matrix(stored[0][gate.expert])  # a reader may hand over this expert alone
            assert torch.equal(alone, g)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_the_router_and_the_shared_expert_make_the_rest_of_the_output(architecture: str) -> None:
    model = build_model(architecture)
    arch = resolve(model)
    mlp = model.get_submodule("model.layers.0.mlp")
    weight = {m.name: m.matrix(model.get_parameter(m.parameter)) for m in arch.modules if m.layer == 0 and m.expert < 0}
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    scores, index = linear(x[0], weight["router"]).softmax(-1).topk(2)
    if architecture == "mixtral":
        scores = scores / scores.sum(-1, keepdim=True)
    expected = mlp.experts(x[0], index, scores)
    if architecture == "qwen2_moe":
        hidden = silu(linear(x[0], weight["shared_gate"])) * linear(x[0], weight["shared_up"])
        expected = expected + sigmoid(linear(x[0], weight["shared_router"])) * linear(hidden, weight["shared_down"])
    torch.testing.assert_close(mlp(x)[0], expected)


def test_layers_without_experts_are_named_as_ever() -> None:
    arch = resolve(build_model("qwen2_moe"))
    assert arch.module(1, "gate").shape == (80, 48)
    assert [block.gate for block in arch.blocks] == [None, "model.layers.1.mlp.act_fn", None]
    with pytest.raises(KeyError, match="no module 'gate' in layer 0"):
        arch.module(0, "gate")


def test_experts_come_one_after_the_other_in_execution_order() -> None:
    names = [(m.name, m.expert) for m in resolve(build_model("qwen2_moe")).modules if m.layer == 0][5:]
    shared = ["mlp_norm", "router", "shared_gate", "shared_up", "shared_down", "shared_router"]
    experts = [(name, expert) for expert in range(3) for name in ("gate", "up", "down")]
    assert names == [(name, -1) for name in shared] + experts


@pytest.mark.parametrize("change", ["is_concatenated", "is_transposed", "own gate", "other shape"])
def test_experts_in_another_layout_are_not_guessed_at(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("mixtral")
    experts = model.model.layers[1].mlp.experts
    if change == "own gate":
        monkeypatch.setattr(type(experts), "_apply_gate", lambda self, x: x)
    elif change == "other shape":
        experts.down_proj = torch.nn.Parameter(experts.down_proj.detach().transpose(1, 2).contiguous())
    else:
        setattr(experts, change, not getattr(experts, change))
    with pytest.raises(ArchitectureError, match=r"layout that no rule knows in model.layers.\d.mlp"):
        by_rules(model)


def _matrices(arch: Architecture, layer: int, name: str) -> list[Module]:
    return [module for module in arch.modules if (module.layer, module.name) == (layer, name)]
