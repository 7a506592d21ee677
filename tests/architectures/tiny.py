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

#: Every type with a causal class.
TYPES: tuple[str, ...] = tuple(CAUSAL)
#: Image-text types without a causal class.
WRAPPERS: tuple[str, ...] = tuple(name for name in IMAGE_TEXT if name not in CAUSAL)
#: The language models among the causal types that are decoders and nothing else.
DECODERS: tuple[str, ...] = ()

VOCABULARY = 211
#: Ids from here on are special tokens of some type; those below are plain text in all.
TEXT_IDS = VOCABULARY - 20

_TEXT: dict[str, Any] = {
    **dict.fromkeys(["vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"], VOCABULARY),
    # widths
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim", "word_embed_proj_dim"], 48),
    "embedding_size": 36,
    # feed-forward
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff", "d_ff"], 80),
    **dict.fromkeys(["dim_ff", "ffn_hidden_size", "d_inner", "feed_forward_size", "intermediate_size_mlp"], 80),
    **dict.fromkeys(["moe_intermediate_size", "expert_ffn_hidden_size"], 24),
    **dict.fromkeys(["shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim"], 40),
    **dict.fromkeys(["moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"], 40),
    **dict.fromkeys(["dense_intermediate_size", "prefix_dense_intermediate_size"], 88),
    # experts
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 5),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"], 2),
    "top_k_experts": 2,
    **dict.fromkeys(["n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers"], 1),
    # attention
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "num_heads"], 4),
    **dict.fromkeys(["num_encoder_attention_heads", "num_decoder_attention_heads", "swa_num_attention_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads", "num_global_key_value_heads"], 2),
    **dict.fromkeys(["head_dim", "swa_head_dim", "kv_channels", "d_kv", "d_head", "dim_head", "rotary_dim"], 16),
    "rotary_dim": 6,
    "query_pre_attn_scalar": 16,
    **dict.fromkeys(["qk_nope_head_dim", "v_head_dim"], 12),
    "v_head_dim": 10,
    "qk_rope_head_dim": 8,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "o_lora_rank": 18,
    **dict.fromkeys(["index_head_dim", "indexer_head_dim"], 16),
    **dict.fromkeys(["index_n_heads", "indexer_n_heads"], 3),
    **dict.fromkeys(["sliding_window", "sliding_window_size", "window_size", "attention_window_size"], 5),
    **dict.fromkeys(["attention_chunk_size", "local_attention"], 6),
    "index_topk": 6,
    # linear attention and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 14,
    "linear_num_heads": 3,
    "linear_head_dim": 12,
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads"], 6),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim"], 16),
    **dict.fromkeys(["mamba_d_state", "ssm_state_size", "state_size"], 9),
    **dict.fromkeys(["mamba_dt_rank", "time_step_rank"], 7),
    **dict.fromkeys(["mamba_n_groups", "n_groups"], 2),
    **dict.fromkeys(["mamba_chunk_size", "chunk_size"], 8),
    # depth
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers"], 2),
    **dict.fromkeys(["encoder_layers", "num_decoder_layers", "num_encoder_layers", "layers"], 2),
    # positions
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"], 128),
    **dict.fromkeys(["original_max_position_embeddings", "model_max_length", "context_length"], 128),
    **dict.fromkeys(["rotary_pct", "partial_rotary_factor"], 0.5),
    # other
    **dict.fromkeys(["hidden_size_per_layer_input", "laurel_rank"], 14),
    "laurel_rank": 11,
    "initializer_range": 0.02,
}
_TOWER: dict[str, Any] = {
    **_TEXT,
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embed_dim", "width", "encoder_hidden_size"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim", "d_ff"], 44),
    **dict.fromkeys(["depth", "num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "layers"], 1),
    **dict.fromkeys(["num_attention_heads", "num_heads", "encoder_attention_heads", "num_key_value_heads"], 4),
    **dict.fromkeys(["head_dim", "attention_head_dim", "d_kv"], 8),
    "out_hidden_size": 48,
    "image_size": 28,
    "patch_size": 14,
    "num_mel_bins": 12,
    "max_source_positions": 20,
}
#: What a type needs besides; a dictionary under a configuration's name goes into that configuration.
OVERRIDES: dict[str, dict[str, Any]] = {}
#: Types that cannot be built or run on text alone, and why.
NOT_BUILT: dict[str, str] = {}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The configuration of a tiny model of this type."""
    cls = CONFIG_MAPPING[model_type]
    return _shrunk(cls, cls.__dict__.get("_tiny_default") or _default(cls), OVERRIDES.get(model_type, {}), _TEXT, {})


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of this type, in float32 on the CPU, in evaluation mode.

    Every parameter and every constant buffer that a checkpoint stores is moved off its initial value, so that no
    gain is neutral, no bias zero, and what starts in a stable range (A_log, dt_bias) stays there.
    """
    config = tiny_config(model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model_class(model_type)(config)
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


def _default(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    return cls()


def _shrunk(
    cls: type[PreTrainedConfig],
    default: PreTrainedConfig,
    overrides: dict[str, Any],
    sizes: dict[str, Any],
    ids: dict[str, int],
) -> PreTrainedConfig:
    names = {field.name for field in dataclasses.fields(cls)}
    arguments = {name: value for name, value in sizes.items() if name in names}
    arguments |= _layers(default, names)
    arguments |= {name: _special(name, ids) for name in sorted(names) if _names_a_token(name)}
    for name, sub in vars(default).items():
        wanted = overrides.get(name)
        if isinstance(sub, PreTrainedConfig):
            kind = _TEXT if _is_text(name) else _TOWER
            arguments[name] = _shrunk(type(sub), sub, wanted or {}, kind, ids)
        elif name in cls.sub_configs and isinstance(wanted, dict):
            sub_cls = cls.sub_configs[name]
            arguments[name] = _shrunk(sub_cls, sub_cls(), wanted, _TEXT if _is_text(name) else _TOWER, ids)
    arguments |= {name: value for name, value in overrides.items() if name not in cls.sub_configs or value is None}
    return cls(**arguments)


def _is_text(name: str) -> bool:
    return not any(word in name for word in ("vision", "audio", "qformer", "vq", "encoder", "vit", "dit"))


def _names_a_token(name: str) -> bool:
    return name.endswith(("_token_id", "_token_index"))


def _special(name: str, ids: dict[str, int]) -> int:
    key = name.removesuffix("_id").removesuffix("_index")
    return ids.setdefault(key, VOCABULARY - 1 - len(ids) % (VOCABULARY - TEXT_IDS))


def _layers(default: PreTrainedConfig, names: set[str]) -> dict[str, Any]:
    """Per-layer lists cut to the first layer of each kind, two layers at least."""
    depth = getattr(default, "num_hidden_layers", None)
    lists = {
        name: list(value)
        for name, value in vars(default).items()
        if name in names and isinstance(value, (list, tuple)) and len(value) == depth
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
        while tb.tb_next: tb = tb.tb_next
        return f"not run: {type(error).__name__}: {' '.join(str(error).split())[:300]} [{tb.tb_frame.f_code.co_filename.split('/')[-1]}:{tb.tb_lineno}]"
    size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    text = f"ok {size:.2f} MB, built {built:.2f} s, ran {ran:.2f} s, std {logits.std():.2f}, layers {getattr(model.config.get_text_config(), 'num_hidden_layers', '?')}"
    if not logits.isfinite().all(): text = "NOT FINITE " + text
    if not same: text = "NOT DETERMINISTIC " + text
    if tuple(logits.shape[:2]) != (2, 9): text = f"SHAPE {tuple(logits.shape)}" + text
    return text


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:] or (*TYPES, *WRAPPERS):
        print(name, "|", _report(name), flush=True)
