"""The self-test at load: it passes where the sums hold and refuses, in words, where they do not."""

from pathlib import Path

import pytest
import torch

from probes.capture.pair import make_pair, prove
from probes.job import run
from tests.pairs import (
    BY_ADAPTER,
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
    forms = prove(model, arch)
    assert set(forms) == {module.path for module in arch.modules if module.kind == "norm"}
    assert all(form.offset == (1.0 if architecture.startswith("gemma") else 0.0) for form in forms.values())
    assert all(form.centred == (architecture in ("gpt2", "neox", "starcoder2")) for form in forms.values())


def test_scaled_residual_writes_are_refused() -> None:
    model = build_model("granite")
    with pytest.raises(ArchitectureError, match=r"resid_pre \+ attn_out = resid_mid does not hold in layer 0"):
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
    for model in (base, tuned):
        for layer in model.model.layers:
            layer.residual_multiplier = 1.0
    make_pair(base, tuned, build_tokenizer())
    tuned.model.layers[1].residual_multiplier = 0.5
    with pytest.raises(ArchitectureError, match="layer 1"):
        make_pair(base, tuned, build_tokenizer())


def test_experts_that_do_something_else_are_refused() -> None:
    """Each is computed again by itself; where their sum is not what the model did, nothing is measured."""
    model = build_model("mixtral")
    experts = model.model.layers[1].mlp.experts
    original = experts.forward
    experts.forward = lambda *args: original(*args) * 1.01
    with pytest.raises(ArchitectureError, match="the experts' sum, each computed by itself, does not hold in layer 1"):
        prove(model, resolve(model))


@pytest.mark.parametrize("architecture", BY_ADAPTER + BY_NAME)
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
