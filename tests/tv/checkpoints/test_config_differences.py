"""Settings that change what the same weights compute are told, others not: the models themselves say which."""

import copy
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tests.pairs import CONFIGS, build_model
from tv.checkpoints.config_differences import _BESIDE_THE_POINT, _BESIDE_THE_POINT_TOO, config_differences, settings_of

_SHORT, _LONG = torch.arange(5, 17)[None], torch.arange(5, 45)[None]
#: Keys whose other value is no plain number, or decides the shapes that are compared elsewhere.
_NOT_TURNED = {"_name_or_path", "architectures", "dtype", "transformers_version", "id2label", "label2id", "vocab_size"}
_OTHER = {
    "chunk_size_feed_forward": 1,
    "eos_token_id": 7,
    "pad_token_id": 9,
    "problem_type": "regression",
}


def _differences(base: PretrainedConfig, tuned: PretrainedConfig) -> list[str]:
    return config_differences(settings_of(base), settings_of(tuned))


def _other(key: str, value: Any) -> Any:
    if key in _OTHER:
        return _OTHER[key]
    if isinstance(value, bool):
        return not value
    return 1 if value is None else value + (1 if isinstance(value, int) else 0.25)


def _changed(config: PretrainedConfig, **changes: Any) -> PretrainedConfig:
    return type(config)(**(copy.deepcopy(config).to_dict() | changes))


def _distance(model: PreTrainedModel, config: PretrainedConfig, ids: torch.Tensor) -> float:
    """How far the logits move where the same weights run under another configuration, relative to them."""
    other = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model(ids).logits
        return float((other(ids, return_dict=True).logits - expected).norm() / expected.norm())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_what_is_not_told_does_not_move_the_logits(architecture: str) -> None:
    model = build_model(architecture)
    listed = {
        key: _other(key, value)
        for key, value in model.config.to_dict().items()
        if key not in _NOT_TURNED and (key in _BESIDE_THE_POINT or _BESIDE_THE_POINT_TOO.search(key))
    }
    changed = _changed(model.config, **listed)
    assert len(listed) > 8 and all(getattr(changed, key) == value for key, value in listed.items())
    assert _differences(model.config, changed) == []
    assert _distance(model, changed, _LONG) == 0


def _model(name: str, **settings: Any) -> PreTrainedModel:
    sizes = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4)
    sizes |= {"num_key_value_heads": 2, "vocab_size": 307}
    config = getattr(transformers, f"{name}Config")(**(sizes | settings))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


_FACTORS = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "original_max_position_embeddings": 16}
#: Model, its rope, and whether the longest context matters.
ROPES: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({"rope_type": "default"}, False),
    "linear": ({"rope_type": "linear", "factor": 2.0}, False),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, True),
    "yarn": ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, False),
    "yarn by length": ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16}, True),
    "longrope": ({"rope_type": "longrope", "factor": 2.0, **_FACTORS}, False),
    "longrope by length": ({"rope_type": "longrope", **_FACTORS}, True),
    "longrope with its factor": ({"rope_type": "longrope", "attention_factor": 1.5, **_FACTORS}, False),
    "llama3": (
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 16},
        False,
    ),
    "proportional": ({"rope_type": "proportional", "factor": 2.0}, False),
}


@pytest.mark.parametrize("case", ROPES)
def test_the_longest_context_matters_where_the_rope_scales_by_it(case: str) -> None:
    rope, matters = ROPES[case]
    model = _model("Llama", max_position_embeddings=32, rope_parameters={"rope_theta": 10000.0, **rope})
    changed = _changed(model.config, max_position_embeddings=64)
    notes = _differences(model.config, changed)
    assert (_distance(model, changed, _LONG) > 1e-3) is matters
    assert [note for note in notes if "max_position_embeddings (32 and 64)" in note] == notes and len(notes) == matters


def test_a_length_that_the_rope_falls_back_on_is_told() -> None:
    """YaRN without an original length takes the longest context for it, and the configuration then says so."""
    rope = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}
    model = _model("Llama", max_position_embeddings=16, rope_parameters=dict(rope))
    changed = _changed(model.config, max_position_embeddings=64, rope_parameters=dict(rope))
    assert _distance(model, changed, _LONG) > 1e-3
    assert any("rope_parameters" in note for note in _differences(model.config, changed))


def test_one_layers_rope_is_enough() -> None:
    ropes = {
        "full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = transformers.Gemma3TextConfig(max_position_embeddings=32, rope_parameters=copy.deepcopy(ropes))
    assert len(_differences(config, _changed(config, max_position_embeddings=64))) == 1
    ropes["full_attention"] = ropes["sliding_attention"]
    config = transformers.Gemma3TextConfig(max_position_embeddings=32, rope_parameters=copy.deepcopy(ropes))
    assert _differences(config, _changed(config, max_position_embeddings=64)) == []


def test_a_table_of_positions_may_end_elsewhere() -> None:
    config = transformers.OPTConfig(max_position_embeddings=32)
    assert len(_differences(config, transformers.OPTConfig(max_position_embeddings=64))) == 1


@pytest.mark.parametrize(
    ("name", "settings", "key", "value"),
    [
        ("Roberta", {"is_decoder": True, "pad_token_id": 1, "max_position_embeddings": 64}, "pad_token_id", 4),
        ("Phimoe", {"num_local_experts": 3, "router_jitter_noise": 0.01}, "router_jitter_noise", 0.4),
        ("Llama", {}, "rms_norm_eps", 0.3),
        ("Llama", {}, "hidden_act", "gelu"),
        ("Mistral", {"sliding_window": None}, "sliding_window", 4),
        ("Mixtral", {"num_local_experts": 3}, "num_experts_per_tok", 1),
    ],
)
def test_what_moves_the_logits_is_told(name: str, settings: dict[str, Any], key: str, value: Any) -> None:
    model = _model(name, **settings)
    changed = _changed(model.config, **{key: value})
    assert _distance(model, changed, _SHORT) > 1e-3
    notes = _differences(model.config, changed)
    assert len(notes) == 1 and f"differ in {key} (" in notes[0]


def test_what_other_programs_write_is_not_told_and_what_nobody_knows_is() -> None:
    config = transformers.LlamaConfig()
    written = {"unsloth_version": "2", "unsloth_fixed": True, "_attn_implementation_autoset": True}
    written |= {"use_flash_attn": True, "auto_map": {"AutoModel": "a.B"}, "temperature": 0.6, "max_length": 40}
    assert _differences(config, _changed(config, **written)) == []
    assert "some_new_scale (None and 2)" in _differences(config, _changed(config, some_new_scale=2))[0]


def test_parts_of_a_configuration_are_compared_by_setting() -> None:
    def config(**text: Any) -> PretrainedConfig:
        return transformers.Gemma3Config(text_config={"hidden_size": 48, "vocab_size": 307, **text})

    assert _differences(config(), config(attention_dropout=0.5, use_cache=False)) == []
    notes = _differences(config(), config(rms_norm_eps=0.5))
    assert len(notes) == 1 and "text_config.rms_norm_eps (1e-06 and 0.5)" in notes[0]
