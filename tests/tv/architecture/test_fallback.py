"""Architectures that no rule of tv's names."""

import sys

import pytest
import torch
from torch import nn
from transformers import CamembertConfig, DeepseekV3Config, GPTJConfig, MambaConfig

import tv
from tests.pairs import BY_ADAPTER, BY_NAME, build_model, build_pair
from tv.architecture.anatomy import Architecture
from tv.architecture.fallback import by_adapter, by_name
from tv.architecture.resolve import resolve, skeleton


@pytest.mark.parametrize("architecture", BY_ADAPTER + BY_NAME)
def test_every_matrix_stands_once(architecture: str) -> None:
    model = build_model(architecture)
    arch = resolve(model)
    assert arch == resolve(skeleton(model.config))
    matrices = {name for name, value in model.named_parameters() if value.ndim > 1 and "bias" not in name}
    assert matrices == {module.parameter for module in arch.modules if module.kind != "norm"}
    places = [(module.layer, module.name, module.expert) for module in arch.modules]
    assert len(places) == len(set(places))
    assert [module.layer for module in arch.modules] == sorted(module.layer for module in arch.modules)
    for module in arch.modules:
        assert module.matrix(model.get_parameter(module.parameter)).shape == module.shape
        assert module.ranges == ()
        assert model.get_submodule(module.path) is not None
    assert (arch.n_layers, arch.d_model, arch.n_heads, arch.vocab_size) == (3, 48, 4, 307)
    assert arch.blocks == ()


def test_the_adapter_gives_roles_and_cuts_nothing() -> None:
    pytest.importorskip("transformer_lens")
    arch = resolve(build_model("falcon"))
    assert arch.roles == "adapter"
    assert "TransformerLens" in arch.note and "no attention found" in arch.note and "\n" not in arch.note
    names = ["attn_norm", "qkv", "o", "up", "down"]
    assert [module.name for module in arch.modules if module.layer == 1] == names
    assert [module.component for module in arch.modules if module.layer == 1] == ["attn"] * 3 + ["mlp"] * 2
    assert (arch.module(1, "qkv").shape, arch.module(1, "qkv").n_heads) == ((72, 48), 0)
    assert arch.module(1, "o").n_heads == 4
    assert (arch.module(3, "unembed").tied, arch.module(3, "final_norm").path) == (True, "transformer.ln_f")
    assert arch.component_of("transformer.h.1.mlp.dense_h_to_4h.weight") == (1, "mlp")
    assert arch.component_of("transformer.h.2.input_layernorm.bias") == (2, "attn")


def test_split_queries_keys_and_values_have_heads() -> None:
    pytest.importorskip("transformer_lens")
    arch = resolve(skeleton(GPTJConfig(n_embd=48, n_layer=3, n_head=4, n_inner=80, rotary_dim=4, vocab_size=307)))
    assert arch.roles == "adapter"
    assert {name: arch.module(0, name).n_heads for name in "qkvo"} == dict.fromkeys("qkvo", 4)


def test_interleaved_experts_stand_by_name_one_by_one() -> None:
    model = build_model("gpt_oss")
    arch = resolve(model)
    fused = arch.module(1, "mlp.experts.gate_up_proj", expert=2)
    assert (fused.shape, fused.component, fused.transposed) == ((160, 48), "mlp", True)
    stored = model.get_parameter(fused.parameter)
    assert torch.equal(fused.matrix(stored), stored[2].T)
    assert torch.equal(fused.matrix(stored[2]), stored[2].T)
    assert all(module.name not in ("gate", "up", "down") for module in arch.modules)


def test_experts_in_the_usual_layout_have_roles_in_any_architecture() -> None:
    pytest.importorskip("transformer_lens")
    config = DeepseekV3Config(
        hidden_size=48,
        intermediate_size=80,
        moe_intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=8,
        first_k_dense_replace=1,
        vocab_size=307,
    )
    arch = resolve(skeleton(config))
    assert arch.roles == "adapter" and "under their own names" in arch.note
    assert arch.module(0, "gate").shape == (80, 48)  # a dense layer, which the adapter calls otherwise
    assert (arch.module(1, "gate", 7).shape, arch.module(1, "down", 7).shape) == ((40, 48), (48, 40))
    assert arch.module(1, "router").shape == (8, 48)
    assert arch.module(1, "shared_up").shape == (40, 48)
    assert arch.module(1, "self_attn.q_a_proj").component == "attn"
    assert all(module.name not in ("q", "k", "v") for module in arch.modules)


def test_a_role_that_the_shapes_contradict_is_not_kept() -> None:
    pytest.importorskip("transformer_lens")
    model = build_model("llama")
    model.model.layers[0].self_attn.q_proj = nn.Linear(48, 128, bias=False)  # as where a gate is fused with it
    model.model.layers[1].mlp.up_proj = nn.Linear(48, 160, bias=False)
    arch = by_adapter(model, "a test")
    assert arch is not None
    assert arch.module(0, "self_attn.q_proj").n_heads == 0
    assert arch.module(1, "mlp.up_proj").shape == (160, 48)
    assert {"q", "up"} <= {module.name for module in arch.modules if module.layer == 2}


def test_what_nobody_knows_stands_under_its_own_name() -> None:
    arch = resolve(build_model("ctrl"))
    assert arch.roles == "unknown"
    assert "roles are unknown" in arch.note and "\n" not in arch.note
    module = arch.module(2, "multi_head_attention.Wq")
    assert (module.kind, module.component, module.n_heads) == ("linear", "attn", 0)
    assert arch.module(2, "ffn.0").component == "mlp"
    assert (arch.module(2, "layernorm1").kind, arch.module(2, "layernorm1").component) == ("norm", "other")
    assert (arch.module(-1, "embed").kind, arch.module(3, "unembed").tied) == ("embed", True)


def test_a_model_without_attention_has_zeros_for_sizes() -> None:
    config = MambaConfig(hidden_size=48, num_hidden_layers=3, vocab_size=307, state_size=5)
    arch = resolve(skeleton(config))
    assert (arch.roles, arch.n_layers, arch.d_model, arch.n_heads, arch.d_head) == ("unknown", 3, 48, 0, 0)
    names = {module.name for module in arch.modules if module.layer == 1}
    assert names == {"norm"} | {f"mixer.{name}" for name in ("A_log", "in_proj", "x_proj", "dt_proj", "out_proj")}
    assert arch.component_of("backbone.layers.1.mixer.conv1d.weight") == (1, "other")


def test_without_transformer_lens_every_name_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_lens.factories.architecture_adapter_factory", None)
    monkeypatch.setattr("tv.architecture.fallback.find_spec", lambda name: None)
    arch = resolve(build_model("falcon"))
    assert arch.roles == "unknown"
    assert "is not installed" in arch.note
    assert arch.module(0, "mlp.dense_h_to_4h").component == "mlp"


@pytest.mark.parametrize("error", [AttributeError, TypeError])
@pytest.mark.parametrize("function", ["select_architecture_adapter", "build_bridge_config_from_hf"])
def test_another_interface_of_transformer_lens_is_said(
    function: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = pytest.importorskip("transformer_lens.factories.architecture_adapter_factory")
    sources = pytest.importorskip("transformer_lens.model_bridge.sources")

    def moved(*_: object) -> None:
        raise error("something moved\nelsewhere")

    monkeypatch.setattr(
        factory.ArchitectureAdapterFactory if function.startswith("select") else sources, function, moved
    )
    with pytest.raises(tv.ArchitectureError, match=rf"{function}: something moved\) .*known to work: 4\.3"):
        resolve(build_model("falcon"))


def test_stacks_of_one_depth_do_not_share_names() -> None:
    model = build_model("ctrl")
    model.add_module("other", nn.ModuleList(nn.ModuleDict({"layernorm1": nn.LayerNorm(48)}) for _ in range(3)))
    arch = by_name(model, "a test")
    names = {module.name for module in arch.modules if module.layer == 1 and module.kind == "norm"}
    assert names == {"layernorm2", "transformer.h.1.layernorm1", "other.1.layernorm1"}


def test_an_embedding_that_is_tied_to_the_unembedding_is_still_one() -> None:
    config = CamembertConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4)
    arch = resolve(skeleton(config))
    assert arch.module(-1, "embed").parameter == arch.module(3, "unembed").parameter == "lm_head.decoder.weight"
    assert (arch.embed, arch.module(3, "unembed").tied) == ("roberta.embeddings.word_embeddings", True)


@pytest.mark.parametrize("architecture", BY_ADAPTER + BY_NAME)
def test_their_weights_are_measured(architecture: str, tmp_path) -> None:
    base, tuned = build_pair(tmp_path, architecture)
    arch: Architecture = tv.open_checkpoint(base).architecture
    assert set(tv.info(base).module) == {module.name for module in arch.modules}
    ssa = tv.ssa(base, tuned)
    inside = {(m.layer, m.name, m.expert) for m in arch.modules if m.layer in range(3) and m.kind == "linear"}
    assert set(zip(ssa.layer, ssa.module, ssa.expert, strict=True)) == inside
    assert ssa.ssa.between(0, 1).all()
    weights = tv.geometry(base, tuned)
    assert {(m.layer, m.name, m.expert) for m in arch.modules} <= set(
        zip(weights.layer, weights.module, weights.expert, strict=True)
    )
