"""Rows and columns in another order, of plain, transposed, fused and expert tensors."""

from dataclasses import replace

import pytest
import torch

import tv
from tests.pairs import build_model
from tv.architecture.anatomy import Module
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.live_tensors import LiveTensors
from tv.matching.reordered import Reordering


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "phi3", "neox", "starcoder2"])
def test_a_module_is_reordered_and_nothing_else(architecture: str) -> None:
    checkpoint = tv.open_checkpoint(build_model(architecture))
    torch.manual_seed(0)
    for module in (m for m in checkpoint.architecture.modules if m.layer == 1 and m.kind == "linear"):
        rows, cols = module.shape
        order, scale = torch.randperm(rows), torch.randn(rows)
        reordering = Reordering(checkpoint)
        reordering.outputs(module, order, scale)
        found = reordering.checkpoint()
        assert torch.equal(found.matrix(module), checkpoint.matrix(module)[order] * scale[:, None])
        bias = checkpoint.bias(module)
        if bias is not None:
            own = found.bias(module)
            assert own is not None and torch.equal(own, bias[order] * scale)
        by_column = checkpoint
        if not module.ranges:
            reordering = Reordering(checkpoint)
            order, scale = torch.randperm(cols), torch.randn(cols)
            reordering.inputs(module, order, scale)
            by_column = reordering.checkpoint()
            assert torch.equal(by_column.matrix(module), checkpoint.matrix(module)[:, order] * scale)
        for other in checkpoint.architecture.modules:
            if (other.layer, other.name) != (module.layer, module.name):
                assert torch.equal(found.matrix(other), checkpoint.matrix(other))
                assert torch.equal(by_column.matrix(other), checkpoint.matrix(other))


def test_slices_of_one_tensor_are_reordered_together() -> None:
    checkpoint = tv.open_checkpoint(build_model("phi3"))
    q, k = (checkpoint.architecture.module(0, name) for name in ("q", "k"))
    assert q.parameter == k.parameter
    reordering = Reordering(checkpoint)
    orders = [torch.randperm(module.shape[0]) for module in (q, k)]
    for module, order in zip((q, k), orders, strict=True):
        reordering.outputs(module, order)
    found = reordering.checkpoint()
    for module, order in zip((q, k), orders, strict=True):
        assert torch.equal(found.matrix(module), checkpoint.matrix(module)[order])


def test_a_permutation_keeps_the_stored_bits_and_a_scale_does_not_round() -> None:
    model = build_model().bfloat16()
    checkpoint = tv.open_checkpoint(model)
    up = checkpoint.architecture.module(0, "up")
    order = torch.randperm(up.shape[0])
    reordering = Reordering(checkpoint)
    reordering.outputs(up, order)
    found = reordering.checkpoint().tensor(up.parameter)
    assert found.dtype == torch.bfloat16 and torch.equal(found, checkpoint.tensor(up.parameter)[order])
    assert not reordering.rounds(up.parameter)
    reordering.outputs(up, torch.arange(len(order)), torch.full((len(order),), 1 / 3))
    scaled = reordering.checkpoint().tensor(up.parameter)
    assert scaled.dtype == torch.float32 and reordering.rounds(up.parameter)
    assert torch.equal(scaled, checkpoint.tensor(up.parameter)[order].float() * torch.tensor(1 / 3))


def test_one_expert_of_a_fused_tensor() -> None:
    checkpoint, experts = with_experts()
    order, scale = torch.randperm(80), torch.randn(80)
    reordering = Reordering(checkpoint)
    reordering.outputs(experts[1], order, scale)
    found = reordering.checkpoint()
    assert torch.equal(found.matrix(experts[1]), checkpoint.matrix(experts[1])[order] * scale[:, None])
    assert torch.equal(found.matrix(experts[0]), checkpoint.matrix(experts[0]))
    whole = found.tensor(experts[1].parameter)
    assert torch.equal(whole[1], found.read(experts[1].parameter, 1))
    assert torch.equal(whole[[0, 2]], checkpoint.tensor(experts[1].parameter)[[0, 2]])


def test_another_order_has_another_fingerprint() -> None:
    checkpoint = tv.open_checkpoint(build_model())
    up = checkpoint.architecture.module(0, "up")
    prints = {checkpoint.fingerprint()["content"]}
    for seed in range(2):
        torch.manual_seed(seed)
        reordering = Reordering(checkpoint)
        reordering.outputs(up, torch.randperm(80))
        prints.add(reordering.checkpoint().fingerprint()["content"])
    assert len(prints) == 3
    assert Reordering(checkpoint).checkpoint() is checkpoint


def with_experts() -> tuple[Checkpoint, list[Module]]:
    """A model of which one matrix is three experts' in bfloat16, and those modules."""
    model = build_model()
    torch.manual_seed(0)
    model.get_submodule("model.layers.0.mlp").experts = torch.nn.Module()
    fused = torch.nn.Parameter(torch.randn(3, 80, 48).bfloat16())
    model.get_submodule("model.layers.0.mlp.experts").register_parameter("up_proj", fused)
    plain = tv.open_checkpoint(build_model())
    path = "model.layers.0.mlp.experts"
    modules = [Module(0, "up", "linear", "mlp", path, f"{path}.up_proj", (80, 48), expert=i) for i in range(3)]
    architecture = replace(plain.architecture, modules=(*plain.architecture.modules, *modules))
    return Checkpoint("experts", None, model.config, architecture, LiveTensors("experts", model)), modules


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "phi3", "neox"])
def test_rows_and_columns_are_mixed_in_blocks(architecture: str) -> None:
    checkpoint = tv.open_checkpoint(build_model(architecture))
    torch.manual_seed(0)
    v, o = (checkpoint.architecture.module(1, name) for name in ("v", "o"))
    d = v.shape[0] // v.n_heads
    blocks = torch.randn(v.n_heads, d, d)
    columns = torch.randn(o.n_heads, d, d)
    reordering = Reordering(checkpoint)
    reordering.mix_outputs(v, blocks)
    reordering.mix_inputs(o, columns)
    found = reordering.checkpoint()
    whole = torch.block_diag(*blocks)
    torch.testing.assert_close(found.matrix(v), whole @ checkpoint.matrix(v), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.matrix(o), checkpoint.matrix(o) @ torch.block_diag(*columns), atol=1e-5, rtol=1e-5)
    bias = checkpoint.bias(v)
    if bias is not None:
        torch.testing.assert_close(found.bias(v), whole @ bias, atol=1e-5, rtol=1e-5)
    for other in checkpoint.architecture.modules:
        if (other.layer, other.name) not in ((1, "v"), (1, "o")):
            assert torch.equal(found.matrix(other), checkpoint.matrix(other))


def test_a_gain_is_scaled_as_its_norm_uses_it() -> None:
    checkpoint = tv.open_checkpoint(build_model("gemma"))
    norm = checkpoint.architecture.module(2, "mlp_norm")
    factor = torch.rand(48) + 0.5
    reordering = Reordering(checkpoint)
    reordering.gain(norm, factor, 1.0)
    found = reordering.checkpoint()
    torch.testing.assert_close(found.matrix(norm) + 1, factor * (checkpoint.matrix(norm) + 1))


def test_rounding_is_carried_along() -> None:
    """A mix that makes small numbers of large ones makes their rounding count for more."""
    checkpoint = tv.open_checkpoint(build_model().bfloat16())
    v = checkpoint.architecture.module(0, "v")
    before = checkpoint.noise(v.parameter).of_weight
    for width, expected in ((1.0, before), (3.0, 3 * before)):
        reordering = Reordering(checkpoint)
        reordering.mix_outputs(v, torch.eye(16).expand(2, 16, 16), width)
        assert reordering.checkpoint().noise(v.parameter).of_weight == pytest.approx(expected, rel=1e-3)
