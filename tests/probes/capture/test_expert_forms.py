"""Mixtures of other forms: what is told of their experts, and what is said not to be."""

import pytest
import torch
from torch.nn.functional import linear, silu

from probes.capture.proof import prove
from probes.measures import mixture
from tests.architectures.tiny import tiny_model
from tv.architecture.anatomy import Architecture
from tv.architecture.resolve import resolve


def test_experts_that_give_what_they_read_are_told_apart_from_those_that_compute() -> None:
    model = tiny_model("longcat_flash")
    arch, flow = prove(model, resolve(model))
    assert [block.experts for block in arch.blocks] == [f"model.layers.{i}.mlp.experts" for i in range(2)]
    assert flow.notes == ("gates are shown of one MLP of a block, not of mlp_2, mlp_3",)
    assert [matrices.expert for matrices in mixture.experts_of(arch, 0)] == [0, 1, 2, 3, 4]
    assert mixture.passing(arch, 0) == [5, 6, 7]
    owner = model.get_submodule("model.layers.0.mlp.experts")
    x = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[0, 6], [7, 5], [4, 1], [5, 5], [2, 3], [6, 0]])
    weights = torch.rand(6, 2, generator=torch.Generator().manual_seed(1))
    routed = mixture.Routed(x, index, weights)
    with torch.no_grad():
        whole = owner(x, index, weights)
        torch.testing.assert_close(mixture.total(owner, mixture.experts_of(arch, 0), routed, [5, 6, 7]), whole)
    rows = torch.tensor([1, 3])
    torch.testing.assert_close(
        mixture.passed_on(routed, 5, rows), x[rows] * torch.stack((weights[1, 1], weights[3].sum()))[:, None]
    )
    assert mixture.overlap(routed, routed, [0, 1, 2, 3, 4, 5, 6, 7]).tolist() == [1.0] * 6


def test_their_unused_rows_are_rows_of_weights() -> None:
    model = tiny_model("longcat_flash")
    arch = resolve(model)
    fused = model.get_parameter("model.layers.1.mlp.experts.gate_up_proj")
    parts = [m for m in arch.modules if m.parameter == "model.layers.1.mlp.experts.gate_up_proj"]
    assert {m.name for m in parts if m.expert >= 5} == {"gate_up_proj"}
    assert sum(m.matrix(fused).numel() for m in parts) == fused.numel()


def test_experts_of_text_are_told_apart_and_those_of_pictures_keep_their_own_names() -> None:
    model = tiny_model("ernie4_5_vl_moe")
    arch, _ = prove(model, resolve(model))
    sparse = arch.blocks[1]
    assert sparse.router == "model.language_model.layers.1.mlp.text_moe.gate"
    assert sparse.experts == "model.language_model.layers.1.mlp.text_moe.experts"
    assert sparse.gate == arch.module(1, "shared_gate")
    assert {m.path for m in arch.modules if m.name == "down" and m.expert >= 0} == {sparse.experts}
    seen = {m.name for m in arch.modules if m.layer == 1 and "vision_moe" in m.path}
    assert seen == {"vision_moe.gate", "vision_moe.experts.gate_up_proj", "vision_moe.experts.down_proj"}
    assert seen == {m.name for m in arch.unread}


def test_stacks_of_other_names_are_cut_into_experts_gates_and_neurons() -> None:
    """JetMoE groups tokens by expert inside its MLP, so that no hook tells its experts apart: it says so."""
    model = tiny_model("jetmoe")
    arch, flow = prove(model, resolve(model))
    assert "experts cannot be separated" in flow.notes
    assert [block.experts for block in arch.blocks] == [None, None]
    mlp = model.get_submodule(arch.blocks[0].writer("mlp").path)
    x = torch.randn(1, 3, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores, index = linear(x[0], _matrix(model, arch, "router")).topk(2)
        made = torch.zeros(3, 48)
        for place, expert in ((i, int(e)) for i in range(3) for e in index[i]):
            gate, up, down = (_matrix(model, arch, name, expert) for name in ("gate", "up", "down"))
            share = scores[place].softmax(-1)[(index[place] == expert).nonzero()[0, 0]]
            made[place] += share * linear(silu(linear(x[0, place], gate)) * linear(x[0, place], up), down)
        torch.testing.assert_close((mlp(x) - mlp.bias)[0], made)


@pytest.mark.parametrize("model_type", ["jetmoe", "dbrx", "muse_spark"])
def test_what_is_not_told_apart_is_no_part_of_the_block(model_type: str) -> None:
    model = tiny_model(model_type)
    arch, flow = prove(model, resolve(model))
    assert "experts cannot be separated" in flow.notes
    assert not any(block.experts for block in arch.blocks)
    assert {m.expert for m in arch.modules if m.expert >= 0} <= {m.expert for m in arch.unread}


def _matrix(model: torch.nn.Module, arch: Architecture, name: str, expert: int = -1) -> torch.Tensor:
    module = arch.module(0, name, expert)
    return module.matrix(model.get_parameter(module.parameter))
