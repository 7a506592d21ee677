"""A reading holds what the model computes, at every token and without padding."""

import pytest
import torch

from probes.capture.pair import make_pair
from probes.discovery.reading import read, readers_of
from tests.pairs import build_model, build_tokenizer, perturb
from tv.prompts.encoding import batches, encode
from tv.prompts.files import Prompt


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "granite", "qwen3_moe", "falcon"])
def test_it_is_the_models_own_logits_and_states(architecture: str) -> None:
    model, other = build_model(architecture), build_model(architecture)
    perturb(other, 0.05, seed=1)
    pair = make_pair(model, other, build_tokenizer())
    prompts = [Prompt(f"p{i}", "s", "d", text) for i, text in enumerate(("The heart pumps", "A lamp gives light in"))]
    (batch,) = batches(encode(prompts, pair.tokenizer, 64), 2, pair.pad_id)
    found = read(other, pair.architecture, readers_of(pair)[1], batch)
    with torch.inference_mode():
        out = other(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    kept = batch.attention_mask.bool()
    assert kept.sum() < kept.numel() and len(found.resid) == pair.architecture.n_layers + 1
    torch.testing.assert_close(found.logits, out.logits[kept].float(), rtol=1e-4, atol=1e-4)
    for depth in range(pair.architecture.n_layers):  # the last of these is behind the final norm
        torch.testing.assert_close(found.resid[depth], out.hidden_states[depth][kept], rtol=1e-4, atol=1e-4)
