"""Sizes out of configurations."""

import pytest
from transformers import GPT2Config, LlamaConfig, MambaConfig

from tv.architecture.sizes import UNBOUNDED, Sizes, sizes_of


def test_names_of_other_configurations_are_known() -> None:
    config = GPT2Config(n_embd=48, n_layer=3, n_head=4, n_positions=64)
    assert sizes_of(config) == Sizes(n_layers=3, d_model=48, n_heads=4, n_kv_heads=4, d_head=12, context=64)


def test_what_is_not_told_follows_or_is_zero() -> None:
    config = LlamaConfig(hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    assert (sizes_of(config).n_kv_heads, sizes_of(config).d_head) == (2, 16)
    sizes = sizes_of(MambaConfig(hidden_size=48, num_hidden_layers=3))
    assert sizes == Sizes(n_layers=3, d_model=48, n_heads=0, n_kv_heads=0, d_head=0, context=UNBOUNDED)


def test_a_size_that_differs_from_layer_to_layer_is_not_made_up() -> None:
    configs = pytest.importorskip("transformers.models.gemma4")
    sizes = sizes_of(configs.Gemma4TextConfig())  # its global layers have longer heads than its local ones
    assert (sizes.d_head, sizes.n_heads > 0) == (0, True)


def test_heads_are_of_queries_keys_values_and_outputs() -> None:
    sizes = Sizes(n_layers=3, d_model=48, n_heads=4, n_kv_heads=2, d_head=16, context=64)
    assert {name: sizes.heads_of(name) for name in ("q", "k", "v", "o", "up")} == dict(q=4, k=2, v=2, o=4, up=0)
