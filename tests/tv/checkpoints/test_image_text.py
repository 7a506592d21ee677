"""Image-text checkpoints: read, tied, moved and written whole, whatever their tensors are called on disk."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

import tv
from tests.architectures.files import word_tokenizer
from tests.architectures.tiny import WRAPPERS, tiny_config, tiny_model, tiny_wrapper, tuned
from tv.architecture.values import values_of
from tv.checkpoints.live import load_model, load_tokenizer
from tv.checkpoints.ties import is_tied

#: Of five ways to name the tensors in the files, and their vision towers.
KINDS = {
    "gemma3": "model.vision_tower",
    "llava": "model.vision_tower",
    "qwen2_5_vl": "model.visual",
    "mistral3": "model.vision_tower",
    "paligemma": "model.vision_tower",
}


def build(kind: str) -> PreTrainedModel:
    return tiny_model(kind) if kind in WRAPPERS else tiny_wrapper(kind)


def values(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values_of(model).items()}


def loaded(model: PreTrainedModel, path: Path) -> dict[str, Tensor]:
    """What transformers loads from there."""
    return values(type(model).from_pretrained(path))


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Up to the rounding of float32."""
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, PreTrainedModel, PreTrainedModel, Path]:
    """(type, base, tuned, where both lie)."""
    base = build(request.param)
    after = tuned(base)
    base.save_pretrained(tmp_path / "base")
    after.save_pretrained(tmp_path / "tuned")
    return request.param, base, after, tmp_path


@pytest.mark.sampled(2)
def test_a_round_trip(pair: tuple[str, PreTrainedModel, PreTrainedModel, Path]) -> None:
    kind, base, after, at = pair
    stored = load_file(at / "base" / "model.safetensors")
    before = dict(base.named_parameters())
    checkpoint = tv.open_checkpoint(at / "base")
    assert not stored.keys() <= before.keys() or kind == "qwen2_5_vl"  # most are called otherwise in the files
    assert checkpoint.names == tuple(before)
    for name, value in before.items():
        assert torch.equal(checkpoint.tensor(name), value)
    listed = tv.info(at / "base").set_index("parameter")
    assert (listed.kind == "group").sum() >= 1 and listed.loc[KINDS[kind], "kind"] == "group"
    assert {"attn", "mlp"} <= set(listed[listed.layer == 0].component)

    tv.extract(at / "base", at / "tuned").save(at / "t.safetensors")
    whole = tv.apply(at / "base", {at / "t.safetensors": 1.0}, out=at / "whole", conflicts=False)
    assert load_file(whole.path / "model.safetensors").keys() == stored.keys()
    assert close(loaded(base, whole.path), values(after))

    tower = f"{KINDS[kind]}."
    part = tv.apply(at / "base", {at / "t.safetensors": 1.0}, out=at / "part", exclude=[f"{tower}*"], conflicts=False)
    got = loaded(base, part.path)
    assert any(name.startswith(tower) for name in got)
    for name, value in got.items():
        expected = base if name.startswith(tower) else after
        assert torch.allclose(value, expected.get_parameter(name), atol=0 if expected is base else 1e-6), name
    assert close(values(load_model(at / "t.safetensors", base=at / "base")), values(after))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen2_5_vl"])
@pytest.mark.parametrize("top, text", [(True, False), (False, True), (False, False)])
def test_a_tie_is_read_of_the_model(kind: str, top: bool, text: bool, tmp_path: Path) -> None:
    """The two configurations may disagree, and which of them counts is the class's own affair."""
    config = tiny_config(kind)
    config.tie_word_embeddings, config.get_text_config().tie_word_embeddings = top, text
    model = type(build(kind))(config).eval()
    model.save_pretrained(tmp_path / "base")
    tied = is_tied(model)
    assert all(tv.open_checkpoint(source).architecture.tied == tied for source in (model, tmp_path / "base"))
    assert tied == is_tied(load_model(tmp_path / "base"))
    after = tuned(model)
    if tied:  # as a merge of an adapter with an unembedding of its own leaves it
        after.lm_head.weight = torch.nn.Parameter(after.lm_head.weight.detach() + 0.1)
        after.config.tie_word_embeddings = after.config.get_text_config().tie_word_embeddings = False
    after.save_pretrained(tmp_path / "tuned")
    applied = tv.apply(tmp_path / "base", {tmp_path / "tuned": 1.0}, out=tmp_path / "out", conflicts=False)
    assert close(loaded(model, applied.path), values(after))


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen2_5_vl"])
def test_an_adapter(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    model.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    settings = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    running = get_peft_model(type(model).from_pretrained(tmp_path / "base"), settings)
    running.save_pretrained(tmp_path / "adapter")
    under = type(model).from_pretrained(tmp_path / "base")
    merged = values(PeftModel.from_pretrained(under, tmp_path / "adapter").merge_and_unload())
    for source in (tmp_path / "adapter", running):
        opened = tv.open_checkpoint(source, base=tmp_path / "base")
        assert close({name: opened.tensor(name) for name in opened.values}, merged)
    applied = tv.apply(tmp_path / "base", {tmp_path / "adapter": 1.0}, out=tmp_path / "out", conflicts=False)
    assert close(loaded(model, applied.path), merged)


def test_an_exported_adapter_leaves_out_what_lies_beside_modules(tmp_path: Path) -> None:
    """peft takes a module whole: CLIP's class embedding stands beside an embedding of patches, which is held."""
    model = build("llava")
    after = tuned(model)
    for name, one in (("base", model), ("tuned", after)):
        one.save_pretrained(tmp_path / name)
    written = tv.lora_export(tmp_path / "base", tmp_path / "tuned", out=tmp_path / "adapter", energy=1.0)
    lost = written.others[~written.others.held.astype(bool)]
    assert lost.parameter.tolist() == ["model.vision_tower.embeddings.class_embedding"]
    assert written.retained == pytest.approx(1 - lost.share.sum(), abs=1e-6)
    under = type(model).from_pretrained(tmp_path / "base")
    merged = values(PeftModel.from_pretrained(under, tmp_path / "adapter").merge_and_unload())
    expected = values(after) | {name: values(model)[name] for name in lost.parameter}
    assert all(torch.allclose(merged[name], expected[name], atol=1e-4) for name in expected)


def test_the_tokenizer_beside_a_processor_is_loaded_alone(tmp_path: Path) -> None:
    model = build("gemma3")
    model.save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "processor_config.json").write_text(json.dumps({"processor_class": "Gemma3Processor"}))
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "No"}))
    assert load_tokenizer(tmp_path / "base")("heart").input_ids == word_tokenizer()("heart").input_ids
    step = tv.extract(tmp_path / "base", tmp_path / "base")
    applied = tv.apply(tmp_path / "base", {step: 1.0}, out=tmp_path / "out", conflicts=False)
    assert {"processor_config.json", "preprocessor_config.json"} <= {path.name for path in applied.path.iterdir()}
