"""Names of modules and sites by tv's own rules, off the module tree alone."""

import pytest
import torch

from tests.pairs import BY_NAME, MEASURED, SUPPORTED, build_model
from tv.architecture.resolve import resolve
from tv.architecture.rules import by_rules
from tv.errors import ArchitectureError


@pytest.mark.parametrize("architecture", MEASURED)
def test_every_matrix_is_named_and_every_parameter_has_one_component(architecture: str) -> None:
    model = build_model(architecture)
    arch = resolve(model)
    named = {module.parameter for module in arch.modules}
    others = {module.parameter for module in arch.others}
    assert named == {name for name, _ in model.named_parameters() if name.endswith("weight")} | {
        name for name, value in model.named_parameters() if value.ndim == 3
    }
    rest = {name for name, _ in model.named_parameters()} - named
    assert others == rest - {f"{module.path}.bias" for module in arch.modules}
    assert bool(others) == (architecture == "gpt_oss")
    for module in arch.modules:
        if module.kind == "linear":
            covered = sum(len(range(*rows, module.step)) for rows in module.ranges) or module.shape[0]
            assert covered == module.shape[0]
    units = {arch.component_of(name) for name, _ in model.named_parameters()}
    expected = {(layer, part) for layer in range(3) for part in ("attn", "mlp")} | {(-1, "embed"), (3, "unembed")}
    assert units == expected
    for module in arch.modules:
        if not module.tied:
            assert arch.component_of(module.parameter) == (
                module.layer if module.component in ("attn", "mlp") else {"embed": -1, "unembed": 3}[module.component],
                module.component,
            )
            assert arch.component_of(f"{module.path}.bias") == arch.component_of(module.parameter)
    assert arch.component_of(f"{arch.unembed}.bias") == ((-1, "embed") if arch.tied else (3, "unembed"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("architecture", MEASURED)
def test_the_slices_of_a_parameter_cover_it_once(architecture: str) -> None:
    model = build_model(architecture)
    for name, parameter in model.named_parameters():
        modules = [module for module in resolve(model).modules if module.parameter == name and not module.tied]
        if modules and parameter.ndim > 1:  # each has some: see above
            seen = parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            entries = torch.cat([module.matrix(seen).flatten() for module in modules])
            assert torch.equal(entries.sort().values, seen.flatten()), name
            assert all(module.matrix(seen).shape == module.shape for module in modules)


def test_a_matrix_of_an_unknown_name_keeps_it() -> None:
    model = build_model("llama")
    attention = model.model.layers[1].self_attn
    attention.add_module("extra_proj", attention.q_proj)
    attention.add_module("inner", torch.nn.ModuleDict({"mix": torch.nn.Linear(5, 3)}))
    del attention.q_proj
    arch = by_rules(model)
    assert arch.module(1, "extra_proj").component == arch.module(1, "inner.mix").component == "attn"
    assert arch.module(1, "extra_proj").n_heads == 0 and arch.module(0, "q").n_heads == 4
    with pytest.raises(KeyError, match="no module 'q' in layer 1"):
        arch.module(1, "q")


def test_a_part_of_an_unknown_name_is_a_component_and_a_norm_a_module() -> None:
    model = build_model("llama")
    model.model.layers[2].add_module("side", torch.nn.Linear(48, 48, bias=False))
    model.model.layers[1].add_module("third_layernorm", torch.nn.LayerNorm(48))
    model.model.layers[0].scale = torch.nn.Parameter(torch.ones(1))
    arch = by_rules(model)
    assert {writer.component for writer in arch.blocks[2].writers} == {"attn", "mlp", "side"}
    assert arch.components == ("attn", "mlp", "side")
    assert arch.module(1, "third_layernorm").component == "other"
    assert [(row.layer, row.name, row.kind) for row in arch.others] == [(0, "scale", "vector")]


def test_a_fused_matrix_whose_slices_do_not_add_up_stays_whole() -> None:
    model = build_model("phi3")
    model.config.num_key_value_heads = 1
    for layer in model.model.layers:
        layer.self_attn.num_key_value_heads = layer.self_attn.num_key_value_groups = 1
    whole = by_rules(model).module(0, "qkv")
    assert whole.ranges == () and whole.n_heads == 0
    assert whole.shape == model.model.layers[0].self_attn.qkv_proj.weight.shape


def test_heads_are_cut_only_where_the_shapes_allow_it() -> None:
    model = build_model("llama")
    for layer in model.model.layers[1:]:
        layer.self_attn.head_dim = 12
    arch = by_rules(model)
    assert {name: arch.module(0, name).n_heads for name in "qkvo"} == dict(q=4, k=2, v=2, o=4)
    assert {name: arch.module(1, name).n_heads for name in "qkvo"} == dict.fromkeys("qkvo", 0)
    assert arch.blocks[1].writer("attn").head_module is None


@pytest.mark.parametrize("architecture", BY_NAME)
def test_what_no_rule_names_is_refused_by_the_rules(architecture: str) -> None:
    with pytest.raises(ArchitectureError, match="OpenAIGPTLMHeadModel: no final norm found in transformer"):
        by_rules(build_model(architecture))


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_every_block_without_experts_has_an_activation_module_and_a_gate(architecture: str) -> None:
    arch = resolve(build_model(architecture))
    name = "gate" if arch.gated else "up"
    assert all(block.act and block.gate == arch.module(block.layer, name) for block in arch.blocks)
    assert all((block.up is not None) == arch.gated for block in arch.blocks)


def test_gate_and_up_rows_that_alternate_are_told_apart() -> None:
    arch = resolve(build_model("gpt_oss"))
    gate, up = arch.module(1, "gate", 2), arch.module(1, "up", 2)
    assert (gate.ranges, gate.step, up.ranges, up.step) == (((0, 160),), 2, ((1, 160),), 2)
    assert gate.shape == up.shape == (80, 48)
