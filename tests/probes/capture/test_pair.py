"""The self-test at load: it passes where the sums hold and refuses, in words, where they do not."""

from pathlib import Path

import pytest
import torch

from probes.capture.pair import make_pair
from probes.capture.proof import prove
from probes.running import run
from tests.pairs import (
    BY_NAME,
    MEASURED,
    build_model,
    build_pair,
    build_tokenizer,
    write_suite,
)
from tv.architecture.resolve import resolve
from tv.checkpoints.live import load_model
from tv.errors import ArchitectureError, InputError
from tv.runtime.compute import Compute


@pytest.mark.parametrize("architecture", MEASURED)
def test_supported_architectures_prove_themselves(architecture: str) -> None:
    model = build_model(architecture)
    arch = resolve(model)
    found, flow = prove(model, arch)
    forms = flow.norms
    assert set(forms) == {module.path for module in arch.modules if module.kind == "norm"}
    assert all(form.offset == (1.0 if architecture.startswith("gemma") else 0.0) for form in forms.values())
    layer_norms = architecture in ("gpt2", "neox", "starcoder2", "falcon")
    assert all(form.centred == layer_norms for form in forms.values())
    assert (found.chained, found.unread, flow.notes) == (True, frozenset(), ())
    assert all(block.writer("attn").head_module == found.module(block.layer, "o") for block in found.blocks)
    assert all(block.gate is not None or block.experts is not None for block in found.blocks)
    parallel = architecture in ("neox", "falcon")
    assert all((block.mid is None) == parallel for block in found.blocks)
    assert flow.writes == (
        {(i, name): 0.3 for i in range(3) for name in ("attn", "mlp")} if architecture == "granite" else {}
    )


def test_a_factor_of_each_layer_and_of_each_dimension_is_found() -> None:
    model = build_model("granite")
    for factor, layer in zip((0.3, 1.0, 0.7), model.model.layers, strict=True):
        layer.residual_multiplier = factor
    _, flow = prove(model, resolve(model))
    assert [flow.factor(i, "mlp") for i in range(3)] == [0.3, 1.0, 0.7]
    scale = torch.rand(48) + 0.5
    model.model.layers[1].residual_multiplier = scale
    _, flow = prove(model, resolve(model))
    torch.testing.assert_close(flow.factor(1, "attn"), scale, rtol=1e-3, atol=1e-3)


def test_what_carries_the_stream_on_is_in_all_factors_before_it() -> None:
    model = build_model("llama")
    model.model.layers[1].register_forward_hook(lambda module, args, output: output / 2)
    _, flow = prove(model, resolve(model))
    factors = {
        place: flow.factor(*place) for place in [(-1, "embed"), (0, "attn"), (0, "mlp"), (1, "mlp"), (2, "attn")]
    }
    assert list(factors.values()) == [0.5, 0.5, 0.5, 0.5, 1.0]


def test_a_stream_that_no_factor_explains_is_refused() -> None:
    model = build_model("llama")
    layer, other = model.model.layers[1], torch.randn(48, 48)
    layer.register_forward_hook(lambda module, args, output: output + output @ other)
    with pytest.raises(
        ArchitectureError, match=r"resid_pre \+ attn_out \+ mlp_out = resid_post does not hold in layer 1"
    ):
        prove(model, resolve(model))


def test_one_bad_layer_is_enough_and_is_named() -> None:
    model = build_model("llama")
    model.model.layers[2].mlp.register_forward_hook(lambda module, args, output: output * 1.01)
    original = model.model.layers[2].forward

    def forward(hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return original(hidden_states, **kwargs) + 0.05

    model.model.layers[2].forward = forward
    with pytest.raises(ArchitectureError, match="layer 2"):
        prove(model, resolve(model))


def test_bfloat16_models_prove_themselves_too() -> None:
    model = build_model("llama").to(torch.bfloat16)
    prove(model, resolve(model))


def test_both_models_are_proved() -> None:
    base, tuned = build_model("granite"), build_model("granite", seed=1)
    tuned.model.layers[1].residual_multiplier = 0.5
    pair = make_pair(base, tuned, build_tokenizer())
    assert [flow.factor(1, "mlp") for flow in pair.flows] == [0.3, 0.5]
    tuned.model.layers[1].register_forward_hook(lambda module, args, output: output + 0.5)
    with pytest.raises(ArchitectureError, match="layer 1"):
        make_pair(base, tuned, build_tokenizer())


def test_experts_that_do_something_else_are_not_told_apart() -> None:
    """Each is computed again by itself; where their sum is not what the model did, no expert is measured."""
    model = build_model("mixtral")
    experts = model.model.layers[1].mlp.experts
    original = experts.forward
    experts.forward = lambda *args: original(*args) * 1.01
    arch, flow = prove(model, resolve(model))
    assert [block.experts is None for block in arch.blocks] == [False, True, False]
    assert flow.notes == ("experts cannot be separated",) and set(flow.experts) == {0, 2}


def test_heads_whose_projection_is_not_all_of_the_output_are_not_told_apart() -> None:
    model = build_model("llama")
    attention = model.model.layers[2].self_attn
    attention.register_forward_hook(lambda module, args, output: (output[0] * output[0].sigmoid(), *output[1:]))
    arch, flow = prove(model, resolve(model))
    assert [block.writer("attn").head_in is None for block in arch.blocks] == [False, False, True]
    assert flow.notes == ("heads of attn cannot be separated",)


def test_a_matrix_whose_product_is_not_its_output_is_not_read() -> None:
    model = build_model("llama")
    model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda module, args, output: output * output)
    model.model.layers[1].self_attn.q_proj.register_forward_hook(lambda module, args, output: output.clamp(-0.1, 0.1))
    arch, flow = prove(model, resolve(model))
    assert arch.unread == {arch.module(0, "gate"), arch.module(1, "q")}
    assert [block.gate is None for block in arch.blocks] == [True, False, False]
    assert flow.notes == ("gates are not shown: the gate's matrix alone does not make its output",)


@pytest.mark.parametrize("architecture", BY_NAME)
def test_a_model_whose_sites_are_unknown_is_refused_before_any_work(architecture: str, tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, architecture)
    with pytest.raises(ArchitectureError, match=r"roles are .*; tv measures its weights, but probes cannot") as caught:
        run(write_suite(tmp_path, base, tuned), out=tmp_path / "out", compute=Compute(progress=_no_work))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    model = build_model(architecture)
    with pytest.raises(ArchitectureError, match="probes cannot run on it"):
        make_pair(model, model, build_tokenizer())


def _no_work(name: str, done: int, total: int, label: str) -> None:
    raise AssertionError(f"{name} was begun")


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)
