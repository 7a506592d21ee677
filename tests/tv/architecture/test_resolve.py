"""Whose word the names of a model's modules are."""

import time
from collections import Counter

import pytest
import transformers

from tests.pairs import BY_NAME, MEASURED, build_model
from tv.architecture.resolve import resolve, skeleton
from tv.errors import ArchitectureError


@pytest.mark.parametrize("architecture", MEASURED)
def test_the_skeleton_resolves_as_the_live_model_does(architecture: str) -> None:
    model = build_model(architecture)
    live, meta = resolve(model), resolve(skeleton(model.config))
    assert live == meta
    assert (live.n_layers, live.vocab_size, live.context) == (3, 307, 64)
    assert live.gated == (architecture not in ("gpt2", "neox", "starcoder2", "falcon"))
    assert (live.roles, live.note) == ("rules", "")


def test_thirty_billion_parameters_in_experts_are_named_in_seconds() -> None:
    config = transformers.Qwen3MoeConfig(
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        moe_intermediate_size=768,
        vocab_size=151936,
    )
    start = time.monotonic()
    arch = resolve(skeleton(config))
    assert time.monotonic() - start < 5
    count = Counter(module.name for module in arch.modules if module.expert >= 0)
    assert count == {"gate": 48 * 128, "up": 48 * 128, "down": 48 * 128}


@pytest.mark.parametrize("architecture", BY_NAME)
def test_what_no_rule_names_falls_back_and_says_so(architecture: str) -> None:
    arch = resolve(build_model(architecture))
    assert arch.roles == "unknown"
    assert arch.note.startswith(f"{arch.name}: roles are unknown (")


def test_a_model_type_without_a_language_model_is_named() -> None:
    with pytest.raises(ArchitectureError, match="model type 'vit': transformers has no causal language model of it"):
        skeleton(transformers.ViTConfig())
