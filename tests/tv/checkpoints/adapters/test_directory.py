"""An adapter's directory as the tuned side: plain LoRA from its factors, what is refused, and what is noted."""

import copy
import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tv
from tests.adapters import IDS, Case, build_adapter, build_base, load_base, shaken, wrapped
from tests.pairs import build_model, build_tokenizer
from tv.checkpoints.live import load_model, load_tokenizer

#: name → (architecture, LoRA settings)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", dict(target_modules="all-linear")),
    "rank and alpha patterns": (
        "llama",
        dict(
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={r"layers\.1\.self_attn\.q_proj": 6, "down_proj": 2, "q_proj": 5},
            alpha_pattern={"v_proj": 32, r".*\.2\.mlp\.down_proj": 1},
        ),
    ),
    "rslora": ("llama", dict(target_modules=["q_proj", "up_proj"], use_rslora=True, rank_pattern={"up_proj": 7})),
    "modules to save": ("llama", dict(target_modules=["o_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    "embedding": ("llama", dict(target_modules=["embed_tokens", "k_proj"])),
    "trained biases": ("qwen2", dict(target_modules=["q_proj", "k_proj"], bias="all")),
    "biases of the adapted": ("qwen2", dict(target_modules=["q_proj"], bias="lora_only")),
    "biases of the factors": ("qwen2", dict(target_modules=["q_proj", "v_proj"], lora_bias=True)),
    "some layers": ("mistral", dict(target_modules=["q_proj"], layers_to_transform=[0, 2])),
    "gpt2": ("gpt2", dict(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)),
    "gpt2 biases": ("gpt2", dict(target_modules=["c_attn"], fan_in_fan_out=True, bias="all")),
    "fused": ("phi3", dict(target_modules=["qkv_proj", "gate_up_proj"])),
    "attention of experts": ("mixtral", dict(target_modules=["q_proj", "o_proj"])),
}


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, Path]:
    return build_adapter(tmp_path, target_modules=["q_proj", "down_proj"])[:2]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    architecture, settings = CASES[case]
    path, adapter, merged = build_adapter(tmp_path, architecture, **settings)
    base = tv.open_checkpoint(path)
    tuned = tv.open_checkpoint(adapter, base=base)
    expected = dict(merged.named_parameters())
    moved = set()
    for name in base.names:
        before, after = base.tensor(name), expected[name]
        delta = tuned.delta(name, base)
        torch.testing.assert_close(tuned.tensor(name), after.detach(), atol=2e-6, rtol=1e-5)
        assert delta.shape == before.shape and delta.dtype == torch.float32
        torch.testing.assert_close(delta, after.detach() - before, atol=2e-6, rtol=1e-4)
        if float(delta.norm()):
            moved.add(name)
    assert moved and moved == set(tuned.moved)
    facts = tv.check_pair(base, tuned)
    assert facts.tokenizer == "same"
    assert any(f"changes {len(moved)} of {len(base.names)} tensors: " in note for note in facts.notes)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
def test_modules_are_cut_out_of_t_itself(architecture: str, tmp_path: Path) -> None:
    targets = {"llama": ["k_proj"], "gpt2": ["c_attn"], "phi3": ["qkv_proj"]}[architecture]
    path, adapter, merged = build_adapter(tmp_path, architecture, target_modules=targets)
    pair = tv.open_pair(path, adapter)
    live = tv.open_checkpoint(merged)
    for module in pair.modules:
        expected = live.matrix(module) - pair.weight(module)
        torch.testing.assert_close(pair.delta(module), expected, atol=2e-6, rtol=1e-4)


def test_t_is_the_product_and_no_difference(tmp_path: Path) -> None:
    """A T far below the rounding of W keeps every bit."""
    path, adapter, _ = build_adapter(tmp_path, target_modules=["q_proj"], lora_alpha=4e-8)
    pair = tv.open_pair(path, adapter)
    module = pair.base.architecture.module(1, "q")
    tensors = load_file(adapter / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    down, up = tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"]
    exact = (1e-8 * up.double() @ down.double()).float()
    assert float((pair.delta(module) - exact).norm() / exact.norm()) < 1e-6
    difference = pair.tuned.matrix(module) - pair.weight(module)
    assert float((difference - exact).norm() / exact.norm()) > 0.1
    assert torch.linalg.matrix_rank(pair.delta(module).double(), rtol=1e-5) == 4


def test_noise_is_that_of_the_factors(tmp_path: Path) -> None:
    path, adapter, _ = build_adapter(
        tmp_path, target_modules=["q_proj", "k_proj"], modules_to_save=["lm_head"], dtype=torch.bfloat16
    )
    pair = tv.open_pair(path, adapter)
    module = pair.base.architecture.module(0, "q")
    assert pair.dtype(module) == "BF16"
    share = pair.noise_share(module, 100.0, 1e-3)
    assert share == pair.noise_share(module, 1.0, 1.0)  # T has no rounding of W in it
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(64, 8, generator=generator), torch.randn(8, 48, generator=generator)
    rounded = up.bfloat16().float() @ down.bfloat16().float()
    measured = float((rounded - up @ down).norm() / rounded.norm()) ** 2
    assert share == pytest.approx(measured, rel=0.3)
    head = next(module for module in pair.modules if module.name == "unembed")
    assert pair.noise_share(head, 10.0, 1.0) == pytest.approx((1.66e-3 * 10) ** 2)
    still = pair.noise_share(pair.base.architecture.module(0, "o"), 10.0, 0.0)
    assert math.isnan(still)  # of a T that is 0 rounding has no share


def test_the_base_it_names_is_opened_without_another(adapter: tuple[Path, Path]) -> None:
    tuned = tv.open_checkpoint(adapter[1])
    assert tuned.base is not None and tuned.base.source == str(adapter[0])
    assert tv.check_pair(tv.open_checkpoint(adapter[0]), tuned).dtype_tuned == "F32"
    _configure(base_model_name_or_path=None)(adapter[1])
    with pytest.raises(tv.CheckpointError, match="names no base model; pass the base"):
        tv.open_checkpoint(adapter[1])
    tv.open_checkpoint(adapter[1], base=adapter[0])


def test_what_an_adapter_changes_is_counted_by_how_it_holds_it(tmp_path: Path) -> None:
    path, adapter, _ = build_adapter(
        tmp_path, target_modules=["q_proj", "k_proj"], modules_to_save=["lm_head"], dtype=torch.bfloat16
    )
    facts = tv.open_pair(path, adapter).facts
    said = f"which changes 7 of {facts.n_tensors} tensors: 6 by its factors, 1 stored whole"
    trained = "LoRA, r 4, alpha 8, on k_proj and q_proj, lm_head trained whole"
    assert facts.notes == (f"{adapter}: an adapter ({trained}), {said}",)


def test_another_base_is_noted(adapter: tuple[Path, Path]) -> None:
    _configure(base_model_name_or_path="someone/other-model")(adapter[1])
    notes = tv.open_pair(*adapter).facts.notes
    assert any("says that its base is someone/other-model" in note for note in notes)


def test_against_another_base_t_is_the_difference(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    build_model("llama", seed=5).save_pretrained(tmp_path / "other")
    other, tuned = tv.open_checkpoint(tmp_path / "other"), tv.open_checkpoint(adapter[1])
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(tuned.delta(name, other), tuned.tensor(name) - other.tensor(name))


def test_fingerprint_sees_the_factors_their_scaling_and_the_base(adapter: tuple[Path, Path], tmp_path: Path) -> None:
    def content(base: Path) -> str:
        return str(tv.open_checkpoint(adapter[1], base=base).fingerprint()["content"])

    before = content(adapter[0])
    build_model("llama", seed=5).save_pretrained(tmp_path / "other")
    assert len({before, content(tmp_path / "other"), tv.open_checkpoint(adapter[0]).fingerprint()["content"]}) == 3
    _configure(lora_alpha=16)(adapter[1])
    scaled = content(adapter[0])
    file = adapter[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, file)
    assert len({before, scaled, content(adapter[0])}) == 3


def test_a_grown_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "base"
    build_model("llama").save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.resize_token_embeddings(311, mean_resizing=False)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]))
    with torch.no_grad():
        wrapped.get_input_embeddings().weight.add_(0.5)
    wrapped.save_pretrained(tmp_path / "adapter")
    pair = tv.open_pair(path, tmp_path / "adapter")
    assert (pair.facts.vocab_base, pair.facts.vocab_tuned, pair.facts.common_rows) == (307, 311, 307)
    embed = pair.modules[0]
    assert pair.weight(embed).shape == pair.delta(embed).shape == (307, 48)
    assert torch.allclose(pair.delta(embed), torch.tensor(0.5), atol=1e-6)
    model = load_model(tmp_path / "adapter")
    assert model.get_input_embeddings().weight.shape == (311, 48)


@pytest.mark.parametrize("case", ["llama", "modules to save", "trained biases", "gpt2"])
def test_a_live_model_computes_what_peft_computes(case: str, tmp_path: Path) -> None:
    architecture, settings = CASES[case]
    path, adapter, merged = build_adapter(tmp_path, architecture, **settings)
    ids = torch.tensor([[0, 5, 9, 44, 100, 306]])
    base = load_model(path)
    before = base(ids).logits
    for model in (load_model(adapter), load_model(adapter, base=path), load_model(adapter, base=base)):
        torch.testing.assert_close(model(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(base(ids).logits, before)  # the live base was copied
    assert not torch.allclose(before, merged(ids).logits, atol=1e-3)
    assert load_tokenizer(adapter).get_vocab() == load_tokenizer(path).get_vocab()


def _configure(**changes: object) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        config = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps(config | changes))

    return spoil


def _retensor(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "adapter_model.safetensors"
        save_file(change(load_file(file)), file)

    return spoil


def _first(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(name for name in sorted(tensors) if part in name)


def _pickled(path: Path) -> None:
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")


def _model_beside(path: Path) -> None:
    build_model("llama").save_pretrained(path)


def _cut(path: Path) -> None:
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


KEY = "base_model.model.model.layers.0.self_attn.q_proj"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "DoRA without its magnitudes": (_configure(use_dora=True), "lora_magnitude_vector' is missing"),
    "DoRA's tensors": (
        _retensor(lambda t: t | {f"{KEY}.lora_magnitude_vector": torch.ones(64)}),
        "lora_magnitude_vector",
    ),
    "trainable tokens": (_configure(trainable_token_indices=[1]), "it misses 'base_model.model.model.embed_tokens"),
    "activated": (_configure(alora_invocation_tokens=[1, 2]), "peft cannot merge it, so it has no T"),
    "tokens before the prompt": (_configure(peft_type="PROMPT_TUNING"), "tokens before the prompt: peft cannot merge"),
    "a prefix": (_configure(peft_type="PREFIX_TUNING"), "keys and values before the prompt's: peft cannot merge"),
    "Arrow": (_configure(arrow_config={"top_k": 2}), "peft cannot merge it, so it has no T"),
    "X-LoRA": (_configure(peft_type="XLORA"), "chosen anew for each input: peft cannot merge"),
    "Megatron": (_configure(megatron_config={"a": 1}), "layers of Megatron"),
    "another type": (_configure(peft_type="IA3"), "nor part of the adapter"),
    "no type": (_configure(peft_type=None), "of type None, which peft"),
    "a type to come": (_configure(peft_type="FUTURE"), "of type FUTURE, which peft"),
    "PiSSA": (_configure(init_lora_weights="pissa_niter_4"), "pissa_niter_4"),
    "replicated layers": (_configure(layer_replication=[[0, 2]]), "more layers than its base"),
    "another rank": (_configure(r=5), "rank 5"),
    "rank 0": (_configure(r=0), "no rank and alpha"),
    "a rank in words": (_configure(r="many"), "no rank and alpha"),
    "a pattern that is none": (_configure(rank_pattern={"(": 3}), "no rank and alpha"),
    "patterns that are none": (_configure(alpha_pattern=[3]), "no rank and alpha"),
    "no mapping": (lambda path: (path / "adapter_config.json").write_text("[]") and None, "adapter_config.json"),
    "nonsense": (lambda path: (path / "adapter_config.json").write_text("{") and None, "adapter_config.json"),
    "pickled": (_pickled, "pickled"),
    "no weights": (
        lambda path: (path / "adapter_model.safetensors").unlink(),
        "no adapter_model.safetensors; download it",
    ),
    "pickled weights": (
        lambda path: (path / "adapter_model.safetensors").rename(path / "adapter_model.bin"),
        "holds pickled weights only, which are not read; save them as safetensors",
    ),
    "cut": (_cut, "truncated"),
    "empty": (_retensor(lambda t: {}), "holds no tensor"),
    "half": (_retensor(lambda t: {k: v for k, v in t.items() if k != _first(t, "lora_B")}), "only one is there"),
    "another width": (
        _retensor(lambda t: t | {_first(t, "q_proj.lora_A"): torch.ones(4, 49)}),
        r"shape [64, 49], the parameter",
    ),
    "another depth": (
        _retensor(lambda t: {k.replace("layers.2", "layers.7"): v for k, v in t.items()}),
        "model.layers.7",
    ),
    "integers": (_retensor(lambda t: {k: v.to(torch.int8) for k, v in t.items()}), "stored as I8"),
    "NaN": (_retensor(lambda t: {k: v * float("nan") for k, v in t.items()}), "NaN"),
    "a model beside it": (_model_beside, "both a model and an adapter"),
}


@pytest.mark.sampled(16)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_in_one_line(case: str, adapter: tuple[Path, Path]) -> None:
    spoil, expected = REFUSED[case]
    spoil(adapter[1])
    with pytest.raises(tv.CheckpointError) as caught:
        tv.geometry(*adapter, heads=False)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bias_that_the_base_has_not_is_refused_for_what_it_is(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    model = get_peft_model(load_base(path), LoraConfig(r=4, target_modules=["q_proj"], lora_bias=True))
    shaken(model).save_pretrained(tmp_path / "adapter")
    with pytest.raises(tv.CheckpointError, match=r"adds a bias 'model.layers.0.self_attn.q_proj.bias' \(lora_bias\)"):
        tv.open_checkpoint(tmp_path / "adapter", base=path)


@pytest.mark.parametrize("kind", ["beft", "olora"])
def test_what_peft_fails_to_merge_is_refused_before_any_work(kind: str, tmp_path: Path) -> None:
    """BEFT where there is no bias; OLoRA on GPT-2, of whose fused matrix peft makes factors of the wrong shape."""
    case = {
        "beft": Case("llama", {"target_modules": ["q_proj"]}, "BEFT"),
        "olora": Case("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": "olora"}),
    }[kind]
    path = build_base(tmp_path, case.architecture)
    wrapped(case, load_base(path)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(tv.CheckpointError, match=r"peft [\d.]+ cannot merge its adapter") as caught:
        tv.open_checkpoint(tmp_path / "adapter", base=path)
    assert "\n" not in str(caught.value)


def test_a_start_that_peft_draws_anew_is_refused(tmp_path: Path) -> None:
    path, adapter, _ = build_adapter(tmp_path, target_modules=["q_proj"])
    _configure(init_lora_weights="pissa_niter_4")(adapter)
    with pytest.raises(tv.CheckpointError, match="a random SVD of the base's weights that peft takes anew"):
        tv.open_checkpoint(adapter, base=path)


def test_a_start_that_peft_leaves_in_the_base_is_noted(tmp_path: Path) -> None:
    path, adapter, _ = build_adapter(tmp_path, target_modules=["q_proj"], init_lora_weights="lora_ga")
    assert any("T holds that part too" in note for note in tv.open_pair(path, adapter).facts.notes)


def test_experts_that_were_trained_one_by_one(tmp_path: Path) -> None:
    """Adapters of older transformers, whose experts were modules: all of a layer's, or a refusal."""
    path = build_base(tmp_path, "mixtral")
    shapes = {"w1": (80, 48), "w2": (48, 80), "w3": (80, 48)}
    tensors = {}
    generator = torch.Generator().manual_seed(3)
    for layer, expert, (name, (out, into)) in product(range(3), range(3), shapes.items()):
        key = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(4, into, generator=generator) * 0.1
        tensors[f"{key}.lora_B.weight"] = torch.randn(out, 4, generator=generator) * 0.1
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 12, "target_modules": [*shapes]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, adapter / "adapter_model.safetensors")
    base = tv.open_checkpoint(path)
    tuned = tv.open_checkpoint(adapter, base=base)
    key = "base_model.model.model.layers.1.block_sparse_moe.experts.2"
    steps = [3 * tensors[f"{key}.{w}.lora_B.weight"] @ tensors[f"{key}.{w}.lora_A.weight"] for w in ("w1", "w3", "w2")]
    found = tuned.delta("model.layers.1.mlp.experts.gate_up_proj", base, 2)
    torch.testing.assert_close(found, torch.cat(steps[:2]), atol=1e-7, rtol=1e-5)
    found = tuned.delta("model.layers.1.mlp.experts.down_proj", base)[2]
    torch.testing.assert_close(found, steps[2], atol=1e-7, rtol=1e-5)
    _retensor(lambda t: {k: v for k, v in t.items() if ".experts.1." in k})(adapter)
    with pytest.raises(tv.CheckpointError, match=r"cannot load its adapter \(LoRA on single experts\)"):
        tv.open_checkpoint(adapter, base=path)


def test_tied_modules_that_are_moved_apart_are_two(tmp_path: Path) -> None:
    path, adapter, _ = build_adapter(tmp_path, "qwen2", target_modules=["q_proj"])
    embed, head = ("base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight")
    weight = tv.open_checkpoint(path).tensor("model.embed_tokens.weight")
    _configure(modules_to_save=["embed_tokens", "lm_head"])(adapter)
    _retensor(lambda t: t | {embed: weight + 1, head: weight + 1})(adapter)
    alike = tv.open_pair(path, adapter)
    assert [module.tied for module in alike.modules if module.name == "unembed"] == [True]
    _retensor(lambda t: t | {head: weight - 1})(adapter)
    apart = tv.open_pair(path, adapter)
    means = {module.name: float(apart.delta(module).mean()) for module in apart.modules if "embed" in module.name}
    assert means == pytest.approx({"embed": 1.0, "unembed": -1.0}, abs=1e-6)
    assert any("moves them apart: T is over the untied base" in note for note in apart.facts.notes)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_embedding_of_another_base_is_told_and_measured(architecture: str, tmp_path: Path) -> None:
    """peft saves the embedding under a LoRA, and overwrites the base's with it."""
    path, adapter, _ = build_adapter(tmp_path, architecture, target_modules=["embed_tokens"])
    name = "model.embed_tokens.weight"
    own = tv.open_checkpoint(path)
    low_rank = tv.open_checkpoint(adapter, base=own)
    assert set(low_rank.moved) == {name}
    assert torch.linalg.matrix_rank(low_rank.delta(name, low_rank.base or own).double(), rtol=1e-5) == 4
    assert not any("rows are others" in note for note in low_rank.notes)
    other = load_base(path)
    with torch.no_grad():
        other.get_input_embeddings().weight[:11] += 1
    running = PeftModel.from_pretrained(copy.deepcopy(other), adapter).eval()
    tuned = tv.open_checkpoint(adapter, base=other)
    assert any("11 of its 307 rows are others" in note for note in tuned.notes)
    torch.testing.assert_close(load_model(adapter, base=other)(IDS).logits, running(IDS).logits, atol=1e-5, rtol=1e-4)
    tied = {module.parameter for module in tuned.architecture.modules if module.name == "unembed"} == {name}
    assert not tied and ("lm_head.weight" in tuned.moved) == (architecture == "qwen2")


def test_an_embedding_that_is_the_base_s_own_does_not_count_as_moved(tmp_path: Path) -> None:
    path = build_base(tmp_path)
    model = shaken(get_peft_model(load_base(path), LoraConfig(r=4, target_modules=["q_proj"])))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert len(tv.open_checkpoint(tmp_path / "adapter", base=path).moved) == 3


def test_peft_is_not_needed(adapter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert len(tv.geometry(*adapter, heads=False))
