"""Names of modules and sites by tv's own rules, off the module tree alone."""

import pytest
import torch

from tests.pairs import BY_ADAPTER, BY_NAME, MEASURED, SUPPORTED, build_model
from tv.architecture.resolve import resolve
from tv.architecture.rules import by_rules
from tv.errors import ArchitectureError


@pytest.mark.parametrize("architecture", MEASURED)
def test_every_matrix_is_named_and_every_parameter_has_one_component(architecture: str) -> None:
    model = build_model(architecture)
    arch = resolve(model)
    named = {module.parameter for module in arch.modules}
    assert named == {name for name, value in model.named_parameters() if name.endswith("weight") or value.ndim > 1}
    for module in arch.modules:
        if module.kind == "linear":
            covered = sum(stop - start for start, stop in module.ranges) or module.shape[0]
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
    assert arch.component_of(f"{arch.unembed}.bias") == (3, "unembed")


@pytest.mark.parametrize("architecture", MEASURED)
def test_the_slices_of_a_parameter_cover_it_once(architecture: str) -> None:
    model = build_model(architecture)
    for name, parameter in model.named_parameters():
        modules = [module for module in resolve(model).modules if module.parameter == name and not module.tied]
        if parameter.ndim > 1:
            seen = parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            entries = torch.cat([module.matrix(seen).flatten() for module in modules])
            assert torch.equal(entries.sort().values, seen.flatten()), name
            assert all(module.matrix(seen).shape == module.shape for module in modules)


def test_an_unknown_matrix_is_named() -> None:
    model = build_model("llama")
    attention = model.model.layers[1].self_attn
    attention.add_module("extra_proj", attention.q_proj)
    del attention.q_proj
    with pytest.raises(ArchitectureError, match=r"'extra_proj' in model.layers.1.self_attn"):
        by_rules(model)


def test_a_matrix_or_a_gain_that_no_rule_reads_is_named() -> None:
    for name, extra in (("adapter", torch.nn.Linear(48, 3)), ("third_layernorm", torch.nn.LayerNorm(48))):
        model = build_model("llama")
        model.model.layers[2].add_module(name, extra)
        with pytest.raises(ArchitectureError, match=rf"no rule knows '{name}' in model.layers.2"):
            by_rules(model)


def test_a_fused_matrix_whose_slices_do_not_add_up_is_refused() -> None:
    model = build_model("phi3")
    model.config.num_key_value_heads = 1
    with pytest.raises(ArchitectureError, match=r"no rule cuts the fused matrix 'qkv_proj' in model.layers.0"):
        by_rules(model)
    model = build_model("llama")
    model.config.head_dim = 8
    with pytest.raises(ArchitectureError, match=r"'q_proj' is not 4 heads of 8"):
        by_rules(model)


@pytest.mark.parametrize("architecture", BY_ADAPTER + BY_NAME)
def test_what_no_rule_names_is_refused_by_the_rules(architecture: str) -> None:
    with pytest.raises(ArchitectureError, match=r"(ForCausalLM|LMHeadModel): "):
        by_rules(build_model(architecture))


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_every_supported_block_has_an_activation_module(architecture: str) -> None:
    assert all(block.gate for block in resolve(build_model(architecture)).blocks)
