"""Tiny random models of every architecture that transformers knows.

A configuration is cut down in three steps: `sizes.py` sets every field whose name it knows, smaller in towers
(vision, audio) than in language models; as few layers stay as show every kind of layer; `overrides.py` says what a
type needs besides. Nothing is downloaded.

`python -m tests.architectures.tiny [type …]` prints which types are built, and which run on a text.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT,
)

from tests.architectures.overrides import NO_TEXT, NOT_BUILT, OVERRIDES
from tests.architectures.sizes import TEXT, TOWER, VOCABULARY

#: Every type with a causal class.
TYPES: tuple[str, ...] = tuple(CAUSAL)
#: Image-text types without a causal class.
WRAPPERS: tuple[str, ...] = tuple(name for name in IMAGE_TEXT if name not in CAUSAL)
#: Types whose causal class is the text part of an image-text class: `tiny_wrapper` builds the whole.
BOTH: tuple[str, ...] = tuple(name for name in IMAGE_TEXT if name in CAUSAL and CAUSAL[name] != IMAGE_TEXT[name])
_DECODERS = """
qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe_text qwen3_5_moe gpt_oss gemma3 gemma3_text gemma3n_text gemma4
gemma4_text gemma4_unified gemma4_unified_text deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 llama4_text
llama4 glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa kimi_linear minimax minimax_m2 minimax_m3_vl_text mistral
ministral ministral3 granite granitemoe granitemoeshared granitemoehybrid granite_swa granitemoe_swa smollm3
phi3 phi phimoe olmo olmo2 olmo3 olmo_hybrid olmoe flex_olmo falcon_h1 falcon_mamba falcon mamba mamba2
jamba bamba lfm2 lfm2_moe lfm3 ernie4_5 ernie4_5_moe hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 exaone4
exaone_moe seed_oss apertus bitnet cohere cohere2 cohere2_moe nemotron nemotron_h qwen4_exp_text qwen4_exp
arcee afmoe dots1 solar_open longcat_flash mimo_v2_flash nanochat mellum laguna zaya zamba zamba2 youtu
vaultgemma recurrent_gemma helium jais2 hyperclovax inkling_text inkling2_text kolibri1 flint cwm diffllama
doge axk1 axk2 bailing_hybrid beam aria_text cohere_compass_text dots3_note_text minicpm3 internlm3
iquestcoder hrm_text xlstm dbrx jetmoe stablelm starcoder2 qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2
llama mixtral gpt2 gpt_neox gptj gpt_neo gpt_bigcode codegen bloom mpt opt persimmon moshi rwkv
modernbert-decoder
"""
#: The types with a causal class that are decoders of text by trade.
DECODERS: tuple[str, ...] = tuple(_DECODERS.split())
#: Ids from here on are special tokens of some type; those below are plain text in all.
TEXT_IDS = VOCABULARY - 20

_TOWER = re.compile("vision|audio|qformer|vq|encoder|vit|dit|sam|adapter")
_TOKEN = re.compile("(token_(id|index)|(patch|start|end|newline)_id)$")
_MLA = {"num_key_value_heads": TEXT["num_attention_heads"], "head_dim": TEXT["qk_rope_head_dim"]}
#: Buffers that training moves. Other buffers of a checkpoint are constants: frequencies, decays, limits.
_TRAINED_BUFFERS = re.compile("(layer_scalar|expert_bias|correction_bias|balancing_biases|self_attn.*alpha)$")


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a tiny model of this type, with the text part and the towers that the type has."""
    cls = CONFIG_MAPPING[model_type]
    decoder = {"is_decoder": True} if model_type in CAUSAL and "is_decoder" in _fields(cls) else {}
    return _shrunk(cls, cls(), TEXT, decoder, {})


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of this type, of the class that AutoModelForCausalLM takes, else of its image-text class.

    It is in float32, on the CPU, in evaluation mode. Every parameter and every buffer that training moves lies off
    its initial value: no gain is neutral, no bias zero; what starts in a stable range (A_log, dt_bias) stays near it.
    """
    return _random(CAUSAL.get(model_type) or IMAGE_TEXT[model_type], model_type, seed)


def tiny_wrapper(model_type: str, seed: int = 0) -> PreTrainedModel:
    """Like `tiny_model`, but always of the image-text class, with towers: what checkpoints of `BOTH` are saved as."""
    return _random(IMAGE_TEXT[model_type], model_type, seed)


def tiny_pair(model_type: str, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A base model and its tuned copy."""
    base = tiny_model(model_type, seed)
    return base, tuned(base, seed)


def tuned(base: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A copy with a random T of 5 % of its size on every tensor that training moves; tied ones stay tied."""
    copied = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for tensor in _trained(copied):
            tensor.add_(0.05 * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator))
    return copied


def _random(class_name: str, model_type: str, seed: int) -> PreTrainedModel:
    cls = getattr(transformers, class_name)
    config = _own_part(cls, tiny_config(model_type))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
        with torch.no_grad():
            for tensor in _trained(model):
                tensor.add_(_noise(tensor))
    return model.eval()


def _own_part(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a composite configuration that this class takes: Qwen3_5ForCausalLM takes the text part."""
    parts = [config, *(getattr(config, name) for name in config.sub_configs)]
    return next((part for part in parts if isinstance(part, cls.config_class)), config)


def _trained(model: PreTrainedModel) -> Iterator[Tensor]:
    yield from model.parameters()
    for name, buffer in model.named_buffers():
        if _TRAINED_BUFFERS.search(name):
            yield buffer[:-1] if name.endswith("balancing_biases") else buffer  # the last of these is a constant


def _noise(tensor: Tensor) -> Tensor:
    if tensor.ndim > 1:
        return 0.15 * torch.randn(tensor.shape)
    size = 0.05 + 0.15 * torch.rand(tensor.shape)  # never close to no change at all
    return size * (2 * torch.randint(2, tensor.shape) - 1)


def _shrunk(
    cls: type[PreTrainedConfig],
    default: PreTrainedConfig,
    sizes: dict[str, Any],
    overrides: dict[str, Any],
    ids: dict[str, int],
) -> PreTrainedConfig:
    """A configuration of this class, cut down. `ids` are the special tokens given so far: all parts share them."""
    names = _fields(cls)
    overrides = OVERRIDES.get(cls.model_type, {}) | overrides
    arguments = {name: value for name, value in (sizes | _attention(default, names)).items() if name in names}
    arguments |= _layers(default, names - arguments.keys())
    arguments |= {name: _special(name, ids) for name in sorted(names) if _TOKEN.search(name)}
    for name, part_cls in cls.sub_configs.items():
        wanted = overrides.get(name)
        part = getattr(default, name, None) or (part_cls() if isinstance(wanted, dict) else None)
        if part is not None:
            arguments[name] = _shrunk(type(part), part, TOWER if _TOWER.search(name) else TEXT, wanted or {}, ids)
    return cls(**arguments | {name: value for name, value in overrides.items() if name not in cls.sub_configs})


def _fields(cls: type[PreTrainedConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _attention(default: PreTrainedConfig, names: set[str]) -> dict[str, Any]:
    """Multi-head latent attention has no fewer key heads than heads; elsewhere half a head is rotated, an even part."""
    if "kv_lora_rank" in names:
        return _MLA
    rope = getattr(default, "rope_parameters", None) or {}
    return {"rope_parameters": rope | {"partial_rotary_factor": 0.5}} if "partial_rotary_factor" in rope else {}


def _layers(default: PreTrainedConfig, names: set[str]) -> dict[str, Any]:
    """What is listed per layer, cut to the first layer of each kind, two layers at least."""
    depth = getattr(default, "num_hidden_layers", 0)
    lists = {name: list(value) for name, value in vars(default).items() if name in names and _per_layer(value, depth)}
    if not lists:
        return {}
    seen: set[tuple[str, str]] = set()
    chosen = []
    for layer in range(depth):
        kinds = {(name, str(values[layer])) for name, values in lists.items()}
        if kinds - seen:
            chosen.append(layer)
            seen |= kinds
    if len(chosen) == 1:
        chosen.append(1)
    return {"num_hidden_layers": len(chosen)} | {name: [v[layer] for layer in chosen] for name, v in lists.items()}


def _per_layer(value: object, depth: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == depth > 1 and list(value) != list(range(depth))


def _special(name: str, ids: dict[str, int]) -> int:
    key = name.removesuffix("_id").removesuffix("_index")
    return ids.setdefault(key, VOCABULARY - 1 - len(ids) % (VOCABULARY - TEXT_IDS))


def _report(model_type: str) -> str:
    """One line of the table: size and times, or the reason why not."""
    if model_type in NOT_BUILT:
        return f"not built: {NOT_BUILT[model_type]}"
    start = time.perf_counter()
    model = tiny_model(model_type)
    built = time.perf_counter() - start
    size = sum(parameter.nbytes for parameter in model.parameters()) / 2**20
    line = f"built, {size:.2f} MB in {built:.2f} s"
    if model_type in NO_TEXT:
        return f"{line}; no text: {NO_TEXT[model_type]}"
    ids = torch.randint(0, TEXT_IDS, (2, 9), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    finite = "finite" if logits.isfinite().all() else "NOT FINITE"
    return f"{line}; {finite} logits {tuple(logits.shape)} in {time.perf_counter() - start:.2f} s"


def main(model_types: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    for model_type in model_types or [*TYPES, *WRAPPERS]:
        try:
            line = _report(model_type)
        except Exception as error:  # of any library: the table goes on
            line = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())}"
        print(f"{model_type:28} {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
