"""Tiny models of twelve types that stand for the others; `python -m tests.architectures.tiny` shows all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tests.architectures import tiny
from tests.architectures.overrides import NO_TEXT, NOT_BUILT

REPRESENTATIVES = [
    "llama",
    "gemma3n_text",  # AltUp, Laurel, keys and values shared between layers
    "gemma4",  # a wrapper with two towers, sizes per layer, experts beside the MLP, a scalar per layer
    "gpt_oss",  # sinks, biases of experts
    "deepseek_v3",  # latent attention, groups of experts, a router's bias in a buffer
    "qwen3_5_moe",  # its causal class takes a part of the configuration
    "nemotron_h",  # four kinds of layers, each with one block
    "falcon_h1",  # two mixers in parallel, factors everywhere
    "zamba",  # layers that share their weights
    "rwkv",
    "bert",  # a decoder only where it is told so
    "qwen2_5_vl",
]


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[PreTrainedModel, PreTrainedModel]]:
    return {name: tiny.tiny_pair(name) for name in REPRESENTATIVES}


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_forward(models, name):
    """A text gives finite logits, the same each time, that look back only; the tuned model's differ."""
    base, tuned = models[name]
    ids = torch.randint(0, tiny.TEXT_IDS, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = _logits(base, ids)
    assert logits.shape == (2, 9, tiny.VOCABULARY)
    assert logits.isfinite().all() and logits.std() > 0.03
    assert torch.equal(logits, _logits(base, ids))
    assert not torch.allclose(logits, _logits(tuned, ids), atol=1e-2)
    ids[:, -1] = (ids[:, -1] + 1) % tiny.TEXT_IDS
    torch.testing.assert_close(_logits(base, ids)[:, :-1], logits[:, :-1])


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_weights(models, name):
    """No value is neutral, no tensor flat; another seed gives another model, the same seed the same one."""
    base, tuned = models[name]
    assert sum(parameter.nbytes for parameter in base.parameters()) < 2**20
    again, other = tiny.tiny_model(name), tiny.tiny_model(name, seed=1)
    for parameter, step, same, different in zip(*map(_parameters, (base, tuned, again, other)), strict=True):
        assert parameter.dtype == torch.float32 and not ((parameter == 0) | (parameter == 1)).any()
        assert parameter.numel() == 1 or parameter.std() > 0.02
        assert torch.equal(parameter, same) and not torch.equal(parameter, different)
        relative = (step - parameter).norm() / parameter.norm()
        assert 0 < relative < 0.2 and (parameter.numel() < 100 or relative > 0.03)
    assert _ties(base) == _ties(tuned)


@pytest.mark.parametrize(("name", "kind"), [("gemma4", "layer_scalar"), ("deepseek_v3", "correction_bias")])
def test_buffers_that_training_moves_are_random_and_tuned(models, name, kind):
    base, tuned = (dict(model.named_buffers()) for model in models[name])
    moved = [n for n in base if not torch.equal(base[n], tuned[n])]
    assert moved and moved == [n for n in base if n.endswith(kind)]  # and no frequency
    assert all((base[n] != 0).all() and (base[n] != 1).all() for n in moved)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_special_tokens_lie_at_the_end_of_the_vocabulary(name):
    special = dict(_token_ids(tiny.tiny_config(name)))
    assert all(tiny.TEXT_IDS <= token < tiny.VOCABULARY for token in special.values())
    assert len(set(special.values())) == len({place.rsplit(".")[-1] for place in special})  # parts agree on them


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("qwen3_next", ["linear_attention", "full_attention"]),
        ("kimi_linear", ["linear_attention", "linear_attention", "full_attention"]),  # the first one is dense
        ("lfm3", ["conv", "full_attention", "sliding_attention"]),
        ("gemma2", ["sliding_attention", "full_attention"]),
        ("deepseek_v4", ["heavily_compressed_attention", "compressed_sparse_attention"]),
    ],
)
def test_every_kind_of_layer_occurs(name, kinds):
    assert tiny.tiny_config(name).layer_types == kinds


def test_first_layers_are_dense_where_later_ones_have_experts():
    for name in ("deepseek_v3", "qwen3_moe", "glm4_moe", "ernie4_5_moe", "lfm2_moe"):
        dense, sparse, *_ = tiny.tiny_model(name).model.layers
        assert not _experts(dense) and _experts(sparse)


def test_sizes_differ():
    config = tiny.tiny_config("qwen3_moe")
    sizes = [
        config.hidden_size,
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
        config.intermediate_size,
        config.moe_intermediate_size,
        config.vocab_size,
        config.num_experts,
        config.num_experts_per_tok,
        config.num_attention_heads,
    ]
    assert len(set(sizes)) == len(sizes)


def test_wrapper_of_a_type_with_both_classes():
    whole, text = tiny.tiny_wrapper("qwen3_5"), tiny.tiny_model("qwen3_5")
    assert any("visual" in name for name in whole.state_dict())
    assert not any("visual" in name for name in text.state_dict())


def test_lists_of_types():
    assert len(set(tiny.DECODERS)) == len(tiny.DECODERS) == 137
    assert set(tiny.DECODERS) <= set(tiny.TYPES)
    assert not set(tiny.DECODERS) & (NOT_BUILT.keys() | NO_TEXT.keys())
    assert not set(tiny.WRAPPERS) & set(tiny.TYPES)
    assert not NOT_BUILT.keys() & NO_TEXT.keys()
    assert NOT_BUILT.keys() | NO_TEXT.keys() <= {*tiny.TYPES, *tiny.WRAPPERS}


def test_report(capsys):
    tiny.main(["gpt2", "blip", "fast_vlm", "no-such-type"])
    runs, image, timm, unknown = capsys.readouterr().out.splitlines()
    assert runs.startswith("gpt2 ") and "finite logits (2, 9, 211)" in runs
    assert image.endswith("no text: its forward pass demands an image")
    assert timm.endswith("not built: its vision tower is a model of the package timm")
    assert "FAILED: KeyError" in unknown


def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def _parameters(model: PreTrainedModel) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def _ties(model: PreTrainedModel) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _experts(layer: torch.nn.Module) -> bool:
    return any("experts" in name for name, _ in layer.named_modules())


def _token_ids(config: PreTrainedConfig, place: str = "") -> Iterator[tuple[str, int]]:
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _token_ids(value, f"{place}{name}.")
        elif name.endswith("token_id") and isinstance(value, int):
            yield place + name, value
