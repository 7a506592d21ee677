"""A patched state, against a forward pass of the whole prompt with the state set by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probes.capture.pair import make_pair
from probes.discovery.patching import said_with
from probes.discovery.reading import readers_of
from probes.discovery.sides import Model
from tests.pairs import build_model, build_tokenizer


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon", "gemma3", "falcon_h1", "qwen3_next"])
def test_it_is_what_a_forward_pass_with_that_state_says(architecture: str) -> None:
    live = build_model(architecture)
    pair = make_pair(live, live, build_tokenizer())
    model, ids = Model(live, pair.architecture, readers_of(pair)[0]), (0, 40, 7, 99, 31)
    vectors = torch.randn(3, pair.architecture.d_model, generator=torch.Generator().manual_seed(0))
    depths = [2, 0, 2]
    said = said_with(model, ids, vectors, depths)
    for vector, depth, own in zip(vectors, depths, said, strict=True):

        def change(_block: Any, args: Any, kwargs: Any, vector: torch.Tensor = vector) -> Any:
            state = (args[0] if args else kwargs["hidden_states"]).clone()
            state[0, -1] = vector
            return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

        block = live.get_submodule(pair.architecture.blocks[depth].path)
        handle = block.register_forward_pre_hook(change, with_kwargs=True)
        with torch.no_grad():
            whole = live(torch.tensor([ids]), use_cache=False).logits[0, -1]
        handle.remove()
        torch.testing.assert_close(own, whole, atol=2e-4, rtol=1e-3)
    assert (
        not torch.allclose(said[0], said[2])
        and not live.get_submodule(pair.architecture.blocks[2].path)._forward_pre_hooks
    )
