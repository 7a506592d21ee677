"""The rules for mixtures of experts, held against what the models compute."""

import pytest
import torch
from torch.nn.functional import linear, sigmoid, silu

from tests.pairs import MIXTURES, build_model
from tv.architecture.anatomy import Architecture, Module
from tv.architecture.resolve import resolve
from tv.architecture.rules import by_rules


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
            if architecture == "gpt_oss":
                into, out = experts.gate_up_proj_bias[gate.expert], experts.down_proj_bias[gate.expert]
                gated, upper = linear(x, g, gate.outputs(into)), linear(x, u, up.outputs(into))
                gated, upper = gated.clamp(max=7), upper.clamp(-7, 7)
                torch.testing.assert_close(linear((upper + 1) * gated * sigmoid(1.702 * gated), d, out), theirs)
            else:
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
    if architecture == "gpt_oss":
        best, index = linear(x[0], weight["router"], mlp.router.bias).topk(2)
        scores = best.softmax(-1)
    else:
        scores, index = linear(x[0], weight["router"]).softmax(-1).topk(2)
    if architecture == "mixtral":
        scores = scores / scores.sum(-1, keepdim=True)
    expected = mlp.experts(x[0], index, scores)
    if architecture == "qwen2_moe":
        hidden = silu(linear(x[0], weight["shared_gate"])) * linear(x[0], weight["shared_up"])
        expected = expected + sigmoid(linear(x[0], weight["shared_router"])) * linear(hidden, weight["shared_down"])
    made = mlp(x)
    torch.testing.assert_close((made[0] if isinstance(made, tuple) else made).view(5, 48), expected)


def test_layers_without_experts_are_named_as_ever() -> None:
    arch = resolve(build_model("qwen2_moe"))
    assert arch.module(1, "gate").shape == (80, 48)
    assert [block.gate for block in arch.blocks] == [
        arch.module(0, "shared_gate"),
        arch.module(1, "gate"),
        arch.module(2, "shared_gate"),
    ]
    assert [block.up.name for block in arch.blocks] == ["shared_up", "up", "shared_up"]
    assert [block.act for block in arch.blocks] == [
        "model.layers.0.mlp.shared_expert.act_fn",
        "model.layers.1.mlp.act_fn",
        "model.layers.2.mlp.shared_expert.act_fn",
    ]
    assert [block.experts is None for block in arch.blocks] == [False, True, False]
    with pytest.raises(KeyError, match="no module 'gate' in layer 0"):
        arch.module(0, "gate")


def test_experts_come_one_after_the_other_in_execution_order() -> None:
    names = [(m.name, m.expert) for m in resolve(build_model("qwen2_moe")).modules if m.layer == 0][5:]
    shared = ["mlp_norm", "router", "shared_gate", "shared_up", "shared_down", "shared_router"]
    experts = [(name, expert) for expert in range(3) for name in ("gate", "up", "down")]
    assert names == [(name, -1) for name in shared] + experts


@pytest.mark.parametrize("change", ["own gate", "other shape"])
def test_experts_of_another_form_stand_one_by_one_under_their_own_names(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("mixtral")
    experts = model.model.layers[1].mlp.experts
    if change == "own gate":
        monkeypatch.setattr(type(experts), "_apply_gate", lambda self, x: x)
    else:
        experts.down_proj = torch.nn.Parameter(experts.down_proj.detach().transpose(1, 2).contiguous())
    arch = by_rules(model)
    assert arch.blocks[1].experts is None
    for name in ("gate_up_proj", "down_proj"):
        own = arch.module(1, f"experts.{name}", expert=2)
        stored = model.get_parameter(own.parameter)
        assert own.component == "mlp" and torch.equal(own.matrix(stored), stored[2])
    with pytest.raises(KeyError, match="no module 'gate' in layer 1, expert 0"):
        arch.module(1, "gate", 0)


@pytest.mark.parametrize(
    ("apply", "gate", "up"),
    [
        (lambda self, x: self.act_fn(x[..., :80]) * x[..., 80:], ((0, 80), 1), ((80, 160), 1)),
        (lambda self, x: x[..., :80] * self.act_fn(x[..., 80:]), ((80, 160), 1), ((0, 80), 1)),
        (lambda self, x: self.act_fn(x[..., ::2]) * x[..., 1::2], ((0, 160), 2), ((1, 160), 2)),
        (lambda self, x: (x[..., ::2] + 1) * self.act_fn(x[..., 1::2]), ((1, 160), 2), ((0, 160), 2)),
    ],
)
def test_which_rows_are_the_gates_is_read_off_what_the_experts_do(apply, gate, up, monkeypatch) -> None:
    model = build_model("mixtral")
    monkeypatch.setattr(type(model.model.layers[1].mlp.experts), "_apply_gate", apply)
    arch = by_rules(model)
    for name, (rows, step) in (("gate", gate), ("up", up)):
        module = arch.module(1, name, 1)
        assert (module.ranges, module.step, module.shape) == ((rows,), step, (80, 48))


def _matrices(arch: Architecture, layer: int, name: str) -> list[Module]:
    return [module for module in arch.modules if (module.layer, module.name) == (layer, name)]
