"""Models in memory that run with adapters: as a tuned side, as their own base, and left as they were."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import (
    LoHaConfig,
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    inject_adapter_in_model as inject,
)
from transformers import PreTrainedModel

import tv
from tests.adapters import CASES, IDS, build_base, load_base, shaken, wrapped
from tests.pairs import build_model, write_prompts
from tv.checkpoints.live import load_model, load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = [
    *("lora, patterns", "lora, whole modules", "dora", "kasa", "ia3", "tokens", "vera", "experts", "trained biases"),
    *("tied, whole head", "tied, lora on the head", "tied, lora, tie kept", "tied, tokens", "gpt2, dora"),
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_the_plain_model_computes_what_the_running_one_computes(name: str, tmp_path: Path) -> None:
    running = wrapped(CASES[name], load_base(build_base(tmp_path, CASES[name].architecture)))
    expected = running(IDS).logits
    for source in (running, running.get_base_model()):
        plain = load_model(source)
        torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-5, rtol=1e-4)
        assert isinstance(plain, PreTrainedModel) and not any("lora" in name for name, _ in plain.named_modules())
        plain.get_input_embeddings().weight.zero_()  # it is a copy
    assert torch.equal(running(IDS).logits, expected)


@torch.no_grad()
def test_it_is_measured_over_the_base_that_is_given_over_its_own_and_over_itself(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    running = wrapped(CASES["lora, patterns"], load_base(path))
    running.save_pretrained(tmp_path / "adapter")
    before, tuned = running(IDS).logits, tv.extract(path, tmp_path / "adapter")
    for base in (path, load_base(path), running, running.get_base_model()):
        found = tv.extract(base, running)
        for name in tuned.names:
            torch.testing.assert_close(found[name], tuned[name], atol=1e-7, rtol=1e-4)
    alone = tv.open_checkpoint(running)
    assert alone.base is not None and len(alone.moved) == len(tv.open_checkpoint(tmp_path / "adapter").moved)
    assert any("runs with an adapter (LoRA, r " in note for note in alone.notes)
    assert torch.equal(running(IDS).logits, before)


def test_beside_itself_it_stands_for_its_base_where_models_run_too(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    running = wrapped(CASES["lora, patterns"], load_base(path))
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    curves = [tv.path(base, running, prompts, alphas=(0, 1), draws=9) for base in (path, running.get_base_model())]
    np.testing.assert_allclose(curves[0].value, curves[1].value, rtol=1e-5, atol=1e-6)
    assert curves[0].groupby("alpha").value.first().nunique() == 2
    tables = [tv.align(base, running, on="activations", prompts=prompts) for base in (path, running)]
    pd.testing.assert_frame_equal(*tables, atol=1e-5)
    planes = [tv.cosine(base, {"a": running, "b": running}, level="whole") for base in (path, running)]
    assert [float(table.cosine[0]) for table in planes] == pytest.approx([1, 1])


@torch.no_grad()
def test_against_another_base_the_difference_counts_too(tmp_path: Path) -> None:
    running = wrapped(CASES["lora, patterns"], load_base(build_base(tmp_path)))
    other = build_model("llama", seed=5)
    name = "model.layers.0.self_attn.k_proj.weight"
    found = tv.extract(other, running)[name]
    own = dict(running.get_base_model().named_parameters())[name]
    torch.testing.assert_close(found, own - dict(other.named_parameters())[name], atol=1e-6, rtol=1e-4)
    assert float(found.norm()) > 1


@torch.no_grad()
def test_adapters_injected_without_a_peft_model(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    native = load_base(path)
    native.add_adapter(LoraConfig(r=4, target_modules=["q_proj"], use_dora=True))
    injected = inject(LoraConfig(r=4, target_modules=["q_proj"], use_dora=True), load_base(path))
    for model in map(shaken, (native, injected)):
        before = model(IDS).logits
        assert float(tv.extract(path, model).norm()) > 1
        torch.testing.assert_close(tv.extract(model, model).norm(), tv.extract(path, model).norm())
        torch.testing.assert_close(load_model(model)(IDS).logits, before, atol=1e-5, rtol=1e-4)
        assert torch.equal(model(IDS).logits, before)


@torch.no_grad()
def test_several_active_adapters_act_together(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    configs = {
        "a": LoraConfig(r=4, target_modules=["q_proj"]),
        "b": LoraConfig(r=3, target_modules=["q_proj", "o_proj"]),
    }
    model = get_peft_model(load_base(path), configs["a"], adapter_name="a")
    model.add_adapter("b", configs["b"])
    model.base_model.set_adapter(["a", "b"])
    mixed = PeftMixedModel(load_base(path), configs["a"], adapter_name="a")
    mixed.add_adapter("c", LoHaConfig(r=3, target_modules=["q_proj"]))
    mixed.set_adapter(["a", "c"])
    for running in map(shaken, (model, mixed)):
        expected = running(IDS).logits
        torch.testing.assert_close(load_model(running)(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    for name, n_moved in {"a": 3, "b": 6}.items():
        model.base_model.set_adapter(name)
        assert len(tv.open_checkpoint(model).moved) == n_moved


def test_what_does_not_run_as_an_adapter_is_told(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    model = shaken(get_peft_model(load_base(path), config))
    base = load_base(path)(IDS).logits
    model.base_model.disable_adapter_layers()
    with pytest.raises(tv.CheckpointError, match="has adapters, and none is active"):
        tv.extract(path, model)
    torch.testing.assert_close(load_model(model)(IDS).logits, base)
    model.base_model.enable_adapter_layers()
    model.merge_adapter()
    with pytest.raises(tv.CheckpointError, match=r"merged into its weights; call unmerge_adapter\(\)"):
        tv.extract(path, model)
    prompt = get_peft_model(load_base(path), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(tv.CheckpointError, match="tokens before the prompt: peft cannot merge it, so it has no T"):
        tv.open_checkpoint(prompt)
    activated = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], alora_invocation_tokens=[5])
    with pytest.raises(tv.CheckpointError, match=r"\(aLoRA\): peft cannot merge it"):
        load_model(get_peft_model(load_base(path), activated))


@pytest.mark.parametrize("name", ["trained biases", "pissa"])
def test_a_base_that_is_not_in_memory_is_asked_for(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = build_base(tmp_path, case.architecture)
    running = wrapped(case, load_base(path))
    with pytest.raises(tv.CheckpointError, match="its base is not in memory; pass the base too"):
        tv.open_checkpoint(running)
    with pytest.raises(tv.CheckpointError, match="its base is not in memory; pass the base too"):
        tv.extract(running, running)
    running.save_pretrained(tmp_path / "adapter")
    found, expected = tv.extract(path, running), tv.extract(path, tmp_path / "adapter")
    assert found.cosine(expected) == pytest.approx(1, abs=1e-5)
    assert found.norm() == pytest.approx(expected.norm(), rel=1e-5)


def test_the_tokenizer_is_its_base_s(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    running: PeftModel = wrapped(CASES["dora"], load_base(path))
    assert load_tokenizer(running).get_vocab() == load_tokenizer(path).get_vocab()
