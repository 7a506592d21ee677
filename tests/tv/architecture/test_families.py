"""Kinds of module trees, each once: what the rules name in them."""

import pytest
import torch
from torch import Tensor, nn

from tests.architectures.tiny import TEXT_IDS, tiny_model
from tv.architecture.resolve import resolve


def test_key_heads_are_counted_in_each_layer() -> None:
    model = tiny_model("mimo_v2_flash")
    arch = resolve(model)
    for block in arch.blocks:
        attention = model.get_submodule(block.path).self_attn
        key, query = arch.module(block.layer, "k"), arch.module(block.layer, "q")
        assert key.n_heads == key.shape[0] // attention.head_dim
        assert query.n_heads == key.n_heads * attention.num_key_value_groups
    assert len({arch.module(block.layer, "k").n_heads for block in arch.blocks}) == 2


def test_a_matrix_with_twice_the_rows_that_down_reads_is_gate_and_up() -> None:
    arch = resolve(tiny_model("moshi"))
    gate, up, down = (arch.module(0, name) for name in ("gate", "up", "down"))
    assert gate.parameter == up.parameter and gate.shape == up.shape == down.shape[::-1]
    assert gate.ranges + up.ranges == ((0, gate.shape[0]), (gate.shape[0], 2 * gate.shape[0]))


def test_queries_that_are_not_compressed_have_heads_beside_compressed_keys() -> None:
    arch = resolve(tiny_model("mistral_large4"))
    assert arch.module(0, "q").n_heads == arch.module(0, "kv_b").n_heads == arch.module(0, "o").n_heads == 4


def test_heads_subtracted_from_each_other_leave_half_as_many_in_z() -> None:
    arch = resolve(tiny_model("diffllama"))
    assert (arch.module(0, "q").n_heads, arch.module(0, "o").n_heads) == (4, 2)


def test_model_parallel_parts_are_put_together() -> None:
    model = tiny_model("codegen")
    arch = resolve(model)
    width = model.config.n_embd // 4
    rows = torch.arange(12 * width).view(4, 3, width)
    for name, place in (("q", 0), ("v", 1), ("k", 2)):
        assert torch.equal(arch.module(0, name).rows, rows[:, place].flatten())


def test_a_gated_norm_is_no_component() -> None:
    arch = resolve(tiny_model("axk2"))
    assert arch.components == ("attn", "mlp")
    assert {row.name for row in arch.others} >= {"input_layernorm.norm", "input_layernorm.mlp.fc1"}


def test_an_attention_between_norms_is_a_component_although_its_class_is_called_after_them() -> None:
    assert resolve(tiny_model("dbrx")).components == ("attn", "mlp")


@pytest.mark.parametrize(
    ("model_type", "group"),
    [("chameleon", "model.vqmodel"), ("phi4_multimodal", "model.embed_tokens_extend")],
)
def test_a_tower_inside_the_trunk_is_a_group(model_type: str, group: str) -> None:
    arch = resolve(tiny_model(model_type))
    assert [module.path for module in arch.groups] == [group]
    assert not any(row.parameter.startswith(f"{group}.") for row in arch.others if row.kind != "group")


def test_what_text_reads_outside_the_blocks_is_no_group() -> None:
    arch = resolve(tiny_model("gemma4_text"))
    assert not arch.groups
    assert "model.per_layer_model_projection" in {row.name for row in arch.others}


@pytest.mark.parametrize(
    ("model_type", "norm"),
    [
        ("biogpt", "biogpt.layer_norm"),
        ("xglm", "model.layer_norm"),
        ("ctrl", "transformer.layernorm"),
        ("roberta-prelayernorm", "roberta_prelayernorm.LayerNorm"),
    ],
)
def test_the_final_norm_goes_by_many_names(model_type: str, norm: str) -> None:
    assert resolve(tiny_model(model_type)).final_norm == norm


def test_a_wrapper_that_names_no_embedding_holds_a_model_that_does() -> None:
    arch = resolve(tiny_model("nemotron_h_omni"))
    assert arch.embed.startswith("language_model.") and arch.components == ("attn", "ssm", "mlp")


@pytest.mark.parametrize("model_type", ["t5gemma2", "florence2", "pix2struct"])
def test_what_an_encoder_reads_has_no_blocks(model_type: str) -> None:
    arch = resolve(tiny_model(model_type))
    assert not arch.blocks and "an encoder reads the prompt" in arch.note


@pytest.mark.parametrize(
    ("model_type", "component", "heads", "each"),
    [("zamba", "ssm", 2, "mamba.D"), ("xlstm", "rnn", 4, "mlstm_layer.igate_preact.bias")],
)
def test_a_mixer_has_the_heads_that_its_module_or_its_norm_counts(
    model_type: str, component: str, heads: int, each: str
) -> None:
    """A parameter with a row for each head moves that head's slice of z, and no other."""
    model = tiny_model(model_type)
    block = resolve(model).blocks[0]
    writer = block.writer(component)
    assert writer.head_module.n_heads == heads
    parameter = model.get_parameter(f"{block.path}.{each}")
    assert len(parameter) == heads
    plain = _input_of(model, writer.head_in)
    for head in range(heads):
        saved = parameter.detach().clone()
        with torch.no_grad():
            parameter[head] *= 1.3
        moved = (_input_of(model, writer.head_in) - plain).abs().flatten(0, 1).amax(0).view(heads, -1).amax(1)
        with torch.no_grad():
            parameter.copy_(saved)
        assert (moved > 0).nonzero()[:, 0].tolist() == [head]


def test_a_sequence_of_two_matrices_is_an_mlp() -> None:
    model = tiny_model("ctrl")
    arch = resolve(model)
    block = arch.blocks[1]
    assert (block.gate, block.up, block.act) == (arch.module(1, "up"), None, "transformer.h.1.ffn.1")
    assert arch.module(1, "down").path == "transformer.h.1.ffn.2"


def test_a_gain_for_each_head_is_no_matrix() -> None:
    arch = resolve(tiny_model("chameleon"))
    assert not any(module.name in ("q_norm", "k_norm") for module in arch.modules)
    rows = {row.name: row.shape for row in arch.others if row.layer == 0}
    assert rows["self_attn.q_norm"] == (4, 12) and rows["self_attn.k_norm"] == (2, 12)


def _input_of(model: nn.Module, path: str) -> Tensor:
    """What the module at `path` reads of a prompt."""
    read: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _module, args: read.append(args[0].clone()))
    ids = torch.randint(0, TEXT_IDS, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    handle.remove()
    return read[0]
