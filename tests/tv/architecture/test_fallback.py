"""Models that no rule of tv's finds a trunk in."""

import pytest
import torch
from torch import nn
from transformers import CamembertConfig

import tv
from tests.pairs import BY_NAME, build_model, build_pair
from tv.architecture.anatomy import Architecture
from tv.architecture.fallback import by_name
from tv.architecture.resolve import resolve, skeleton


@pytest.mark.parametrize("architecture", BY_NAME)
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


def test_what_nobody_knows_stands_under_its_own_name() -> None:
    arch = resolve(build_model("openai-gpt"))
    assert arch.roles == "unknown"
    assert "roles are unknown (no final norm found in transformer)" in arch.note and "\n" not in arch.note
    module = arch.module(2, "attn.c_attn")
    assert (module.kind, module.component, module.n_heads) == ("linear", "attn", 0)
    assert arch.module(2, "mlp.c_fc").component == "mlp"
    assert (arch.module(2, "ln_1").kind, arch.module(2, "ln_1").component) == ("norm", "other")
    assert (arch.module(-1, "embed").kind, arch.module(3, "unembed").tied) == ("embed", True)
    assert arch.others == ()


@pytest.mark.parametrize("turned", [True, False])
def test_experts_stand_one_by_one_and_every_other_parameter_is_a_row(turned: bool) -> None:
    model = build_model("openai-gpt")
    experts, sinks = nn.Module(), nn.Parameter(torch.randn(4))
    experts.gate_up_proj = nn.Parameter(torch.randn(3, 48, 160) if turned else torch.randn(3, 160, 48))
    experts.gate_up_proj_bias = nn.Parameter(torch.randn(3, 160))
    experts.is_transposed = turned
    model.transformer.h[1].experts = experts
    model.transformer.h[1].attn.sinks = sinks
    arch = resolve(model)
    fused = arch.module(1, "experts.gate_up_proj", expert=2)
    assert (fused.shape, fused.component, fused.transposed) == ((160, 48), "mlp", turned)
    stored = model.get_parameter(fused.parameter)
    assert torch.equal(fused.matrix(stored), stored[2].T if turned else stored[2])
    assert torch.equal(fused.matrix(stored[2]), stored[2].T if turned else stored[2])
    assert {(row.layer, row.name, row.shape) for row in arch.others} == {
        (1, "experts.gate_up_proj_bias", (3, 160)),
        (1, "attn.sinks", (4,)),
    }


def test_stacks_of_one_depth_do_not_share_names() -> None:
    model = build_model("openai-gpt")
    model.add_module("other", nn.ModuleList(nn.ModuleDict({"ln_1": nn.LayerNorm(48)}) for _ in range(3)))
    arch = by_name(model, "a test")
    names = {module.name for module in arch.modules if module.layer == 1 and module.kind == "norm"}
    assert names == {"ln_2", "transformer.h.1.ln_1", "other.1.ln_1"}


def test_an_embedding_that_is_tied_to_the_unembedding_is_still_one() -> None:
    config = CamembertConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4)
    arch = resolve(skeleton(config))
    assert arch.module(-1, "embed").parameter == arch.module(3, "unembed").parameter == "lm_head.decoder.weight"
    assert (arch.embed, arch.module(3, "unembed").tied) == ("roberta.embeddings.word_embeddings", True)


@pytest.mark.parametrize("architecture", BY_NAME)
def test_their_weights_are_measured(architecture: str, tmp_path) -> None:
    base, tuned = build_pair(tmp_path, architecture)
    arch: Architecture = tv.open_checkpoint(base).architecture
    assert set(tv.info(base).module) == {module.name for module in arch.modules}
    ssa = tv.ssa(base, tuned)
    inside = {(m.layer, m.name, m.expert) for m in arch.modules if m.layer in range(-1, 3) and m.kind == "linear"}
    assert set(zip(ssa.layer, ssa.module, ssa.expert, strict=True)) == inside
    assert ssa.ssa.between(0, 1).all()
    weights = tv.geometry(base, tuned)
    assert {(m.layer, m.name, m.expert) for m in arch.modules} <= set(
        zip(weights.layer, weights.module, weights.expert, strict=True)
    )
