"""Kinds of module trees, each once: what the rules name in them."""

import pytest
import torch

from tests.architectures.tiny import tiny_model
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
