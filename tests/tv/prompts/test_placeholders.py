"""A token that stands for a picture, a video or a sound is refused: models are given text alone."""

import pytest
from transformers import LlamaConfig, LlavaConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig

from tests.architectures.tiny import tiny_model
from tests.pairs import build_tokenizer
from tv.errors import PromptError
from tv.prompts.behaviour import batched
from tv.prompts.encoding import Prompt, encode
from tv.prompts.placeholders import placeholders_of, require_text


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = build_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    return made


def _config(tokenizer: PreTrainedTokenizerFast, name: str) -> PretrainedConfig:
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    if name == "llava":
        return LlavaConfig(image_token_index=image)
    return Qwen2_5_VLConfig(image_token_id=image, video_token_id=video) if name == "qwen" else LlamaConfig()


@pytest.mark.parametrize("name, text, stands_for", [("llava", "<image>", "image"), ("qwen", "<video>", "video")])
@pytest.mark.parametrize("where", ["text", "target", "foil"])
def test_the_prompt_and_the_token_are_named(
    name: str, text: str, stands_for: str, where: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    words = {"text": "The heart", "target": " blood", "foil": " light"}
    words[where] = f" {text} {words[where]}" if where == "text" else text
    odd = Prompt("odd", "s", "d", words["text"], words["target"], words["foil"])
    encoded = encode([Prompt("plain", "s", "d", "A lamp"), odd], tokenizer, 64)
    with pytest.raises(PromptError) as caught:
        require_text(encoded, tokenizer, _config(tokenizer, name))
    said = str(caught.value)
    assert "odd" in said and "plain" not in said and "\n" not in said
    assert f"token {text!r} (id {tokenizer.convert_tokens_to_ids(text)}) stands for {stands_for}" in said
    require_text(encoded[:1], tokenizer, _config(tokenizer, name))


def test_a_text_model_has_none(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode([Prompt("p", "s", "d", "<image> The heart")], tokenizer, 64)
    require_text(encoded, tokenizer, _config(tokenizer, "llama"))
    assert placeholders_of(tiny_model("qwen3_5").config) == {}


def test_a_wrapper_is_not_run_on_it(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llava")
    model.resize_token_embeddings(len(tokenizer))
    prompts = [Prompt("p", "s", "d", "The heart")]
    assert len(batched(prompts, model, tokenizer, 1)) == 1
    model.config.image_token_index = tokenizer("The heart")["input_ids"][-1]
    with pytest.raises(PromptError, match="stands for image"):
        batched(prompts, model, tokenizer, 1)
