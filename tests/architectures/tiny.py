"""Tiny random models of every architecture that transformers knows.

A configuration is cut down in three steps: sizes of the classes below go wherever the class has a field of that
name, towers (vision, audio, …) get smaller ones; as few layers stay as show every kind of layer; `OVERRIDES` says
what a type needs besides. Sizes are pairwise distinct where the type allows, so that no test passes because two
dimensions happen to agree.

`python -m tests.architectures.tiny [type …]` prints which types are built and run.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
import time
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT,
)

from tests.architectures.sizes import OVERRIDES, TEXT, TOWER, VOCABULARY

#: Every type with a causal class.
TYPES: tuple[str, ...] = tuple(CAUSAL)
#: Image-text types without a causal class.
WRAPPERS: tuple[str, ...] = tuple(name for name in IMAGE_TEXT if name not in CAUSAL)
#: The language models among the causal types that are decoders and nothing else.
DECODERS: tuple[str, ...] = tuple(
    """
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
    """.split()
)

#: Ids from here on are special tokens of some type; those below are plain text in all.
TEXT_IDS = VOCABULARY - 20

_TOWER = re.compile("vision|audio|qformer|vq|encoder|vit|dit|sam|adapter")
_TOKEN = re.compile("(token_(id|index)|(patch|start|end|newline)_id)$")
_MLA = {"num_key_value_heads": "num_attention_heads", "head_dim": "qk_rope_head_dim"}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a tiny model of this type."""
    cls = CONFIG_MAPPING[model_type]
    decoder = {"is_decoder": True} if model_type in CAUSAL and "is_decoder" in _fields(cls) else {}
    return _shrunk(cls, cls(), TEXT, decoder, {})


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of this type, in float32 on the CPU, in evaluation mode.

    Every parameter and every constant buffer that a checkpoint stores is moved off its initial value, so that no
    gain is neutral, no bias zero, and what starts in a stable range (A_log, dt_bias) stays there.
    """
    config = tiny_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cls = _model_class(model_type)
        model = cls(_own_part(cls, config))
        with torch.no_grad():
            for tensor in _stored(model):
                tensor.nan_to_num_(0, 0, 0).add_(_noise(tensor))
    return model.float().eval()


def tiny_pair(model_type: str, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A base model and its tuned copy, which differs by 5 % in every tensor; tied ones stay tied."""
    base = tiny_model(model_type, seed)
    tuned = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for tensor in _stored(tuned):
            step = torch.randn(tensor.shape, generator=generator)
            tensor.add_(0.05 * tensor.square().mean().sqrt() * step)
    return base, tuned


def _model_class(model_type: str) -> type[PreTrainedModel]:
    return getattr(transformers, CAUSAL.get(model_type) or IMAGE_TEXT[model_type])


def _stored(model: nn.Module) -> list[Tensor]:
    """Parameters once each, and the constant float buffers of the checkpoint: layer scalars, router biases."""
    stored = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    buffers = [
        buffer
        for buffer in model.buffers()
        if id(buffer) in stored and buffer.is_floating_point() and buffer.numel() and _constant(buffer)
    ]
    return [*model.parameters(), *buffers]


def _constant(buffer: Tensor) -> bool:
    return bool(buffer.isfinite().all()) and buffer.min().item() == buffer.max().item()


def _noise(tensor: Tensor) -> Tensor:
    if tensor.ndim > 1:
        return 0.15 * torch.randn(tensor.shape)
    size = 0.05 + 0.15 * torch.rand(tensor.shape)
    return size * (2 * torch.randint(2, tensor.shape) - 1)


def _own_part(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a composite configuration that this class takes: Qwen3_5ForCausalLM takes the text part."""
    parts = [part for part in vars(config).values() if isinstance(part, cls.config_class)]
    return config if isinstance(config, cls.config_class) or not parts else parts[0]


def _shrunk(
    cls: type[PreTrainedConfig],
    default: PreTrainedConfig,
    sizes: dict[str, Any],
    overrides: dict[str, Any],
    ids: dict[str, int],
) -> PreTrainedConfig:
    names = _fields(cls)
    overrides = OVERRIDES.get(cls.model_type, {}) | overrides
    arguments = {name: value for name, value in sizes.items() if name in names}
    arguments |= _mla(names) | _rotary(default) | _layers(default, names - arguments.keys())
    arguments |= {name: _special(name, ids) for name in sorted(names) if _TOKEN.search(name)}
    for name in cls.sub_configs:
        part, wanted = getattr(default, name, None), overrides.get(name)
        if part is None and isinstance(wanted, dict):
            part = cls.sub_configs[name]()
        if isinstance(part, PreTrainedConfig):
            arguments[name] = _shrunk(type(part), part, TOWER if _TOWER.search(name) else TEXT, wanted or {}, ids)
    return cls(**arguments | {name: value for name, value in overrides.items() if name not in cls.sub_configs})


def _fields(cls: type[PreTrainedConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _mla(names: set[str]) -> dict[str, Any]:
    """Multi-head latent attention: as many key heads as heads, and head_dim names their rotary part."""
    if "kv_lora_rank" not in names:
        return {}
    return {name: TEXT[size] for name, size in _MLA.items() if name in names}


def _rotary(default: PreTrainedConfig) -> dict[str, Any]:
    """Rotary parameters whose part of a head stays even in tiny heads."""
    rope = getattr(default, "rope_parameters", None)
    return (
        {"rope_parameters": rope | {"partial_rotary_factor": 0.5}} if rope and "partial_rotary_factor" in rope else {}
    )


def _special(name: str, ids: dict[str, int]) -> int:
    key = name.removesuffix("_id").removesuffix("_index")
    return ids.setdefault(key, VOCABULARY - 1 - len(ids) % (VOCABULARY - TEXT_IDS))


def _layers(default: PreTrainedConfig, names: set[str]) -> dict[str, Any]:
    """Per-layer lists cut to the first layer of each kind, two layers at least."""
    depth = getattr(default, "num_hidden_layers", None)
    lists = {
        name: list(value)
        for name, value in vars(default).items()
        if name in names
        and isinstance(value, (list, tuple))
        and len(value) == depth
        and list(value) != list(range(depth))
    }
    if not lists:
        return {}
    seen: set[tuple[str, Any]] = set()
    chosen = []
    for layer in range(depth):
        kinds = {(name, str(values[layer])) for name, values in lists.items()}
        if kinds - seen:
            chosen.append(layer)
            seen |= kinds
    if len(chosen) == 1:
        chosen.append(1)
    return {"num_hidden_layers": len(chosen)} | {n: [v[layer] for layer in chosen] for n, v in lists.items()}


def _report(model_type: str) -> str:
    start = time.perf_counter()
    try:
        model = tiny_model(model_type)
    except Exception as error:
        return f"not built: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    built = time.perf_counter() - start
    ids = torch.randint(0, TEXT_IDS, (2, 9), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    try:
        with torch.no_grad():
            inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            logits = model(**inputs).logits
            ran = time.perf_counter() - start
            same = torch.equal(logits, model(**inputs).logits)
    except Exception as error:
        tb = error.__traceback__
        while tb.tb_next:
            tb = tb.tb_next
        return f"not run: {type(error).__name__}: {' '.join(str(error).split())[:300]} [{tb.tb_frame.f_code.co_filename.split('/')[-1]}:{tb.tb_lineno}]"
    size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    text = f"ok {size:.2f} MB, built {built:.2f} s, ran {ran:.2f} s, std {logits.std():.2f}, layers {getattr(model.config.get_text_config(), 'num_hidden_layers', '?')}"
    if not logits.isfinite().all():
        text = "NOT FINITE " + text
    if not same:
        text = "NOT DETERMINISTIC " + text
    if tuple(logits.shape[:2]) != (2, 9):
        text = f"SHAPE {tuple(logits.shape)}" + text
    return text


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:] or (*TYPES, *WRAPPERS):
        print(name, "|", _report(name), flush=True)
