"""A model in another dtype."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.architectures.tiny import tiny_model
from tv.checkpoints.casting import cast


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "xglm", "ernie4_5_moe", "deepseek_v3"])
def test_a_cast_model_is_the_one_that_is_loaded_in_the_dtype(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = torch.arange(24)[None]
    with torch.no_grad():
        found, expected, rounded = (
            one(input_ids=ids, use_cache=False).logits
            for one in (cast(copy.deepcopy(model), torch.bfloat16), loaded, copy.deepcopy(model).to(torch.bfloat16))
        )
    assert torch.equal(found, expected)
    assert torch.equal(rounded, expected) == (name == "xglm")  # whose positions are no rotations
