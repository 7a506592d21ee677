"""The class that a checkpoint names loads it, where that is a language model: with a tower if it was saved with one."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import GPT2Config, LlamaConfig, PretrainedConfig, Qwen3_5ForConditionalGeneration, SiglipConfig

import tv
from tests.architectures.tiny import tiny_config, tiny_model, tiny_wrapper
from tv.architecture.classes import built, loader_of
from tv.architecture.resolve import skeleton
from tv.checkpoints.live import load_model
from tv.errors import ArchitectureError


def test_a_checkpoint_keeps_the_tower_that_it_was_saved_with(tmp_path: Path) -> None:
    """Qwen3.5 is saved by its image-text class or by its text class, and both are of a causal type."""
    whole, text = tiny_wrapper("qwen3_5"), tiny_model("qwen3_5")
    assert isinstance(whole, Qwen3_5ForConditionalGeneration) and type(whole) is not type(text)
    for name, model in (("whole", whole), ("text", text)):
        model.save_pretrained(tmp_path / name)
        checkpoint, live = tv.open_checkpoint(tmp_path / name), load_model(tmp_path / name)
        assert type(live) is type(model) and checkpoint.architecture.name == type(model).__name__
        assert set(checkpoint.names) == {parameter for parameter, _ in model.named_parameters()}
        assert [group.path for group in checkpoint.architecture.groups] == ["model.visual"] * (model is whole)
        for parameter, value in model.named_parameters():
            assert torch.equal(checkpoint.tensor(parameter), value)


@pytest.mark.parametrize(
    "config, name",
    [
        (LlamaConfig(architectures=["LlamaForCausalLM"]), "LlamaForCausalLM"),
        (LlamaConfig(architectures=["LlamaForSequenceClassification"]), "AutoModelForCausalLM"),
        (LlamaConfig(architectures=["GPT2LMHeadModel"]), "AutoModelForCausalLM"),  # of another type
        (LlamaConfig(architectures=["MyOwnModel"]), "AutoModelForCausalLM"),
        (LlamaConfig(), "AutoModelForCausalLM"),
        (GPT2Config(architectures=["GPT2ForTokenClassification"]), "AutoModelForCausalLM"),
        (tiny_config("llava"), "AutoModelForImageTextToText"),
        (tiny_config("gemma3"), "AutoModelForCausalLM"),
    ],
)
def test_what_is_no_language_model_falls_back_to_the_types_own(config: PretrainedConfig, name: str) -> None:
    assert loader_of(config).__name__ == name


def test_a_class_that_is_no_language_model_is_not_built() -> None:
    config = tiny_config("qwen2")
    config.architectures = ["Qwen2ForSequenceClassification"]
    assert type(skeleton(config)) is transformers.Qwen2ForCausalLM
    model = built(config, dtype=torch.float64)
    assert type(model) is transformers.Qwen2ForCausalLM and model.dtype == torch.float64


@pytest.mark.parametrize("named", [None, ["LlamaForCausalLM"]])
def test_a_type_without_a_language_model_is_refused_in_a_line(named: list[str] | None) -> None:
    config = SiglipConfig(architectures=named)
    with pytest.raises(ArchitectureError, match=r"^model type 'siglip': transformers has no causal language model"):
        loader_of(config)
