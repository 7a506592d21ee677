"""Which settings of two configurations make the same weights compute something else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Who wrote a configuration, in which precision, and which kernels run it.
_ORIGIN = {
    *("_name_or_path", "_model_name_or_path", "architectures", "auto_map", "transformers_version", "dtype"),
    *("torch_dtype", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "use_flash_attn"),
    *("use_flash_attention", "use_flash_attention_2", "pretraining_tp", "slow_but_exact", "chunk_size_feed_forward"),
}
#: Read at the start of training, or for the loss alone.
_TRAINING = {
    *("initializer_range", "initializer_factor", "init_std", "gradient_checkpointing", "router_aux_loss_coef"),
    *("aux_loss_coef", "z_loss_coefficient", "router_jitter_noise", "input_jitter_noise", "moe_jitter_eps"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
}
#: What is returned, which tokens generation asks for, and what another setting or comparison covers.
_OUTPUT = {
    *("use_cache", "output_attentions", "output_hidden_states", "output_router_logits"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "forced_eos_token_id"),
    *("vocab_size", "max_window_layers"),  # the embedding's rows; layer_types
}
_BESIDE_THE_POINT = _ORIGIN | _TRAINING | _OUTPUT
#: Families of such names: `attention_dropout`, `resid_pdrop`, `decoder_layerdrop`; `unsloth_version`.
_BESIDE_THE_POINT_TOO = re.compile(r"(^|_)(\w*dropout|p?drop|layerdrop)(_p|_prob|_rate)?$|^_?unsloth_")
#: Setting → the model types whose forward pass reads it after all.
_READ_AFTER_ALL = {
    # positions count from the padding token's number
    "pad_token_id": re.compile(r"(xlm-)?roberta.*|camembert|data2vec-text|xmod|xlm|prophetnet|trocr"),
    "router_jitter_noise": re.compile("phimoe"),  # how near the best expert another must be to be chosen with it
}


@dataclass(frozen=True)
class Settings:
    """A configuration as plain values, and what says which of them the forward pass reads."""

    model_type: str
    values: dict[str, Any]
    parts: dict[str, Settings]  # configurations in it
    declared: list[str]  # the settings of its class
    generation: list[str]  # what old files keep beside them
    length_is_read: bool  # whether the longest context is

    def is_read(self, key: str) -> bool:
        """Whether the forward pass in evaluation may depend on a setting. One that nobody knows here may."""
        if key in _READ_AFTER_ALL and _READ_AFTER_ALL[key].fullmatch(self.model_type):
            return True
        if key in _BESIDE_THE_POINT or _BESIDE_THE_POINT_TOO.search(key):
            return False
        if key == "max_position_embeddings":
            return self.length_is_read
        return key not in self.generation or key in self.declared

    def to_json(self) -> dict[str, Any]:
        """As plain values that JSON holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, rows: dict[str, Any]) -> Settings:
        """What `to_json` was called on."""
        return cls(**rows | {"parts": {key: cls.from_json(part) for key, part in rows["parts"].items()}})


def settings_of(config: PretrainedConfig) -> Settings:
    """The settings of a configuration, each as its file would hold it."""
    from transformers import GenerationConfig, PretrainedConfig

    values = json.loads(json.dumps(config.to_dict(), default=str))
    parts = {key: part for key in values if isinstance(part := _value(config, key), PretrainedConfig)}
    return Settings(
        model_type=config.model_type,
        values=values,
        parts={key: settings_of(part) for key, part in parts.items()},
        declared=list(type(config).__dataclass_fields__),
        generation=list(GenerationConfig().to_dict()),
        length_is_read=_length_is_read(config),
    )


def config_differences(base: Settings, tuned: Settings) -> list[str]:
    """A note for each setting that makes the same weights compute something else."""
    return [
        f"the configurations differ in {key} ({left} and {right}): more changed than weights"
        for key, left, right in _differing(base, tuned)
    ]


def _differing(base: Settings, tuned: Settings, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    left, right = base.values, tuned.values
    for key in sorted(left.keys() | right.keys()):
        if key in base.parts and key in tuned.parts:
            yield from _differing(base.parts[key], tuned.parts[key], f"{prefix}{key}.")
        elif not _alike(left.get(key), right.get(key)) and (base.is_read(key) or tuned.is_read(key)):
            yield prefix + key, left.get(key), right.get(key)


def _value(config: PretrainedConfig, key: str) -> Any:
    """A setting; None where it is not one for all layers, which transformers refuses to give."""
    try:
        return getattr(config, key, None)
    except RuntimeError:
        return None


def _length_is_read(config: PretrainedConfig) -> bool:
    """Whether the longest context scales the rotary embedding. A model without one may have a table of positions."""
    ropes = getattr(config, "rope_parameters", None)
    if not ropes:
        return True
    by_layer = [rope for rope in ropes.values() if isinstance(rope, Mapping)]
    return any(_scales_by_length(rope) for rope in by_layer or [ropes])


def _scales_by_length(rope: Mapping[str, Any]) -> bool:
    kind = str(rope.get("rope_type"))
    if kind in ("yarn", "longrope"):  # without a factor, it is this length over the original one
        return rope.get("factor") is None and (kind == "yarn" or rope.get("attention_factor") is None)
    return "dynamic" in kind


def _alike(left: Any, right: Any) -> bool:
    """Equal, or equal numbers once they are float32, as GGUF keeps them."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_alike(left[key], right[key]) for key in left)
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-6)
    return bool(left == right)
