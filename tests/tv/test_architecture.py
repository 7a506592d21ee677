"""Names of modules and sites by tv's own rules, off the module tree alone."""

import time
from collections import Counter

import pytest
import torch
import transformers
from torch.nn.functional import linear, sigmoid

from tests.pairs import BY_ADAPTER, BY_NAME, MEASURED, MIXTURES, SUPPORTED, build_model
from tv.architecture import Architecture, Module, resolve, skeleton
from tv.errors import ArchitectureError
from tv.rules import by_rules


@pytest.mark.parametrize("architecture", MEASURED)
def test_the_skeleton_resolves_as_the_live_model_does(architecture: str) -> None:
    model = build_model(architecture)
    live, meta = resolve(model), resolve(skeleton(model.config))
    assert live == meta
    assert (live.n_layers, live.vocab_size, live.context) == (3, 307, 64)
    assert live.gated == (architecture not in ("gpt2", "neox", "starcoder2"))
    assert (live.roles, live.note) == ("rules", "")


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
            torch.testing.assert_close(linear(torch.nn.functional.silu(linear(x, g)) * linear(x, u), d), theirs)
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
        hidden = torch.nn.functional.silu(linear(x[0], weight["shared_gate"])) * linear(x[0], weight["shared_up"])
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


def test_thirty_billion_parameters_in_experts_are_named_in_seconds() -> None:
    config = transformers.Qwen3MoeConfig(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        moe_intermediate_size=768,
        vocab_size=151936,
    )
    start = time.monotonic()
    arch = resolve(skeleton(config))
    assert time.monotonic() - start < 5
    count = Counter(module.name for module in arch.modules if module.expert >= 0)
    assert count == {"gate": 48 * 128, "up": 48 * 128, "down": 48 * 128}


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


def _matrices(arch: Architecture, layer: int, name: str) -> list[Module]:
    return [module for module in arch.modules if (module.layer, module.name) == (layer, name)]
