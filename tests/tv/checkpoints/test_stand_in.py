"""A model without its weights: every product of the real one, in the memory of one block."""

import pytest
import torch

from tests.pairs import CONFIGS, build_model
from tv.checkpoints import stand_in as module
from tv.checkpoints.stand_in import stand_in
from tv.errors import LackOfMemory


@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_computes_with_the_shapes_of_the_real_one(architecture: str) -> None:
    real = build_model(architecture)
    model = stand_in(real.config, torch.float32)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters(remove_duplicate=False)}
    assert shapes == {name: tuple(value.shape) for name, value in real.named_parameters(remove_duplicate=False)}
    held = {value.data_ptr(): value for value in model.parameters()}
    assert len(held) == len(set(shapes.values())) < len(shapes)
    assert not any(buffer.is_meta for buffer in model.buffers())
    ids = torch.arange(10)[None]
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert logits.shape == (1, 10, real.config.get_text_config().vocab_size) and bool(logits.isfinite().all())
    assert float(logits.std()) > 0


def test_large_tensors_repeat_what_is_drawn_and_a_table_has_its_first_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAWN", 100)
    monkeypatch.setattr(module, "_ROWS", 3)
    real = build_model("gpt2")  # which has a table of positions, beside that of words, which is the unembedding
    model = stand_in(real.config, torch.float32)
    table = model.transformer.wpe.weight[:3].flatten()
    assert torch.equal(table[:-100], table[100:]) and bool(table.ne(0).all()) and len(table) > 100
    assert not torch.equal(model.transformer.wpe.weight.flatten()[len(table) :][:100], table[:100])
    for value in (model.transformer.h[1].mlp.c_fc.weight, model.lm_head.weight):
        flat = value.flatten()
        assert bool(flat.ne(0).all()) and torch.equal(flat[:100], flat[100:200])


def test_what_does_not_fit_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda: 1000)
    with pytest.raises(LackOfMemory, match="a trial holds one block of it"):
        stand_in(build_model().config, torch.float32)
