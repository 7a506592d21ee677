"""Adapters of peft on tiny models: every kind that has a T, with random weights, for tests."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.pairs import build_model, build_tokenizer

IDS = torch.tensor([[0, 5, 9, 44, 3, 100, 306, 7]])


@dataclass(frozen=True)
class Case:
    """A configuration of peft on an architecture of tests/pairs.py."""

    architecture: str
    settings: dict[str, Any]
    kind: str = "LORA"
    merges: bool = True  # what peft merges is what the adapter runs as
    moved: frozenset[str] = field(default=frozenset())  # the ends of a tie that move, where that is the point


def _lora(*targets: str, on: str = "llama", merges: bool = True, **settings: Any) -> Case:
    return Case(on, {"r": 4, "target_modules": list(targets), **settings}, merges=merges)


def _other(kind: str, on: str = "llama", **settings: Any) -> Case:
    return Case(on, {"target_modules": ["q_proj", "down_proj"], **settings}, kind)


def _tied(*moved: str, merges: bool = True, targets: tuple[str, ...] = ("q_proj",), **settings: Any) -> Case:
    names = frozenset({"embed": "model.embed_tokens.weight", "unembed": "lm_head.weight"}[end] for end in moved)
    return Case("qwen2", {"r": 4, "target_modules": list(targets), **settings}, merges=merges, moved=names)


_BOTH = ["embed_tokens", "lm_head"]
CASES: dict[str, Case] = {
    "lora": Case("llama", {"r": 4, "target_modules": "all-linear"}),
    "lora, patterns": _lora(
        *("q_proj", "v_proj", "down_proj"),
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 6, "down_proj": 2, "q_proj": 5},
        alpha_pattern={"v_proj": 32, r".*\.2\.mlp\.down_proj": 1},
    ),
    "rslora": _lora("q_proj", "up_proj", use_rslora=True, rank_pattern={"up_proj": 7}),
    "lora, whole modules": _lora("o_proj", modules_to_save=_BOTH),
    "lora, some layers": _lora("q_proj", layers_to_transform=[0, 2]),
    "lora, embedding": _lora("embed_tokens", "k_proj"),
    "lora, head": _lora("lm_head", "k_proj"),
    "lora_bias": _lora("q_proj", "v_proj", on="qwen2", lora_bias=True),
    "trained biases": _lora("q_proj", "k_proj", on="qwen2", bias="all"),
    "dora": _lora("q_proj", "down_proj", use_dora=True),
    "dora, patterns": _lora("q_proj", "k_proj", use_dora=True, rank_pattern={"k_proj": 2}, use_rslora=True),
    "dora, trained biases": _lora("q_proj", "k_proj", on="qwen2", use_dora=True, bias="all"),
    "dora, embedding": _lora("embed_tokens", "q_proj", use_dora=True),
    "dora, whole module": _lora("q_proj", use_dora=True, modules_to_save=["lm_head"]),
    "pissa": _lora("q_proj", "down_proj", init_lora_weights="pissa"),
    "olora": _lora("q_proj", "down_proj", init_lora_weights="olora"),
    "eva": _lora("q_proj", "down_proj", init_lora_weights="eva", eva_config=peft.EvaConfig()),
    "orthogonal": _lora("q_proj", init_lora_weights="orthogonal"),
    "mica": _lora("q_proj", init_lora_weights="mica"),
    "lora_ga": _lora("q_proj", init_lora_weights="lora_ga"),
    "kasa": _lora("q_proj", "down_proj", kasa_config=KasaConfig()),
    "velora": _lora("q_proj", velora_config=VeloraConfig()),
    "monteclora": _lora("q_proj", monteclora_config=MontecloraConfig()),
    "block-diagonal": _lora("q_proj", use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)),
    "lora and tokens": _lora("q_proj", trainable_token_indices=[3, 7]),
    "tokens": Case("llama", {"token_indices": [3, 9], "target_modules": ["embed_tokens"]}, "TRAINABLE_TOKENS"),
    "adalora": _other("ADALORA", init_r=6, target_r=4, total_step=10),
    "adamss": _other("ADAMSS", r=8, num_subspaces=2, subspace_rank=2),
    "beft": Case("qwen2", {"target_modules": ["q_proj"]}, "BEFT"),
    "boft": _other("BOFT", boft_block_size=4, boft_n_butterfly_factor=2),
    "c3a": _other("C3A", block_size=16),
    "deft": _other("DEFT", r=4),
    "delora": _other("DELORA", r=4),
    "fourierft": _other("FOURIERFT", n_frequency=20),
    "frod": _other("FROD"),
    "glora": _other("GLORA", on="qwen2", r=4),
    "gralora": _other("GRALORA", r=4, gralora_k=2),
    "hira": _other("HIRA", r=4),
    "hra": _other("HRA", r=4),
    "hra, orthogonalised": _other("HRA", r=4, apply_GS=True),
    "ia3": _other("IA3", on="qwen2", feedforward_modules=["down_proj"]),
    "ln_tuning": Case("llama", {"target_modules": ["input_layernorm"]}, "LN_TUNING"),
    "loha": _other("LOHA", r=4),
    "lokr": _other("LOKR", r=4, decompose_both=True),
    "miss": _other("MISS", r=4),
    "miss, bat": _other("MISS", r=8, init_weights="bat"),
    "oft": _other("OFT", oft_block_size=8),
    "osf": _other("OSF", effective_rank=4),
    "peanut": _other("PEANUT", r=4),
    "psoft": _other("PSOFT", r=4),
    "pvera": _other("PVERA", r=6),
    "randlora": _other("RANDLORA", r=4),
    "road": _other("ROAD", on="qwen2", group_size=8),
    "shira": _other("SHIRA", r=4),
    "supertuning": _other("SUPERTUNING", r=3),
    "tinylora": _other("TINYLORA", u=8),
    "unilora": _other("UNILORA", r=4, theta_d_length=64),
    "vblora": _other("VBLORA", r=4, num_vectors=8, vector_length=16, topk=2),
    "vera": _other("VERA", r=6),
    "vera, projections not saved": _other("VERA", r=6, save_projection=False),
    "waveft": _other("WAVEFT", n_frequency=20),
    # Conv1D: the weight is stored (in, out).
    "gpt2, lora": _lora("c_attn", "c_proj", "c_fc", on="gpt2", fan_in_fan_out=True),
    "gpt2, lora_bias": _lora("c_attn", on="gpt2", fan_in_fan_out=True, lora_bias=True),
    "gpt2, dora": _lora("c_attn", "c_proj", on="gpt2", fan_in_fan_out=True, use_dora=True),
    "gpt2, pissa": _lora("c_attn", on="gpt2", fan_in_fan_out=True, init_lora_weights="pissa"),
    "gpt2, ia3": _other("IA3", on="gpt2", target_modules=["c_attn", "c_proj"], feedforward_modules=["c_proj"]),
    "gpt2, ln_tuning": Case("gpt2", {"target_modules": ["ln_1"]}, "LN_TUNING"),
    "gpt2, tokens": Case("gpt2", {"token_indices": [3, 9], "target_modules": ["wte"]}, "TRAINABLE_TOKENS"),
    # Fused matrices and fused experts.
    "fused": _lora("qkv_proj", "gate_up_proj", on="phi3"),
    "fused, dora": _lora("qkv_proj", "gate_up_proj", on="phi3", use_dora=True),
    "experts": _lora("o_proj", on="mixtral", target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
    "experts and a matrix": _lora(on="qwen3_moe", target_parameters=["experts.down_proj", "q_proj.weight"]),
    "transposed experts": _lora(on="gpt_oss", target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
    # An embedding and an unembedding that are one tensor.
    "tied, whole head": _tied("unembed", modules_to_save=["lm_head"]),
    "tied, whole embedding": _tied("embed", modules_to_save=["embed_tokens"]),
    "tied, whole ends": _tied("embed", "unembed", modules_to_save=_BOTH),
    "tied, whole head, tie kept": _tied("embed", modules_to_save=["lm_head"], ensure_weight_tying=True),
    "tied, whole ends, tie kept": _tied("embed", modules_to_save=_BOTH, ensure_weight_tying=True),
    "tied, lora on the embedding": _tied("embed", targets=("embed_tokens",), merges=False),
    "tied, lora on the head": _tied("unembed", targets=("lm_head",), merges=False),
    "tied, lora on the ends": _tied("embed", "unembed", targets=("embed_tokens", "lm_head"), merges=False),
    "tied, lora, tie kept": _tied("embed", targets=("embed_tokens",), ensure_weight_tying=True, merges=False),
    "tied, dora on the embedding": _tied("embed", targets=("embed_tokens",), use_dora=True, merges=False),
    "tied, tokens": _tied("embed", trainable_token_indices=[3, 9]),
    "tied, tokens of the head": _tied("unembed", trainable_token_indices={"lm_head": [3, 9]}, merges=False),
}


def wrapped(case: Case, model: PreTrainedModel) -> PeftModel:
    """The model with a random adapter of this kind, also where peft starts from zero."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[getattr(peft.PeftType, case.kind)]
    torch.manual_seed(1)
    return shaken(get_peft_model(model, config(task_type="CAUSAL_LM", **copy.deepcopy(case.settings))))


def shaken(model: Any, step: float = 0.1, seed: int = 7) -> Any:
    """A model whose trained parameters are moved at random, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * step)
    return model.eval()


def build_base(directory: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    """Write a random base with its tokenizer, unless it is there."""
    path = directory / f"{architecture}-base"
    if not path.exists():
        build_model(architecture).to(dtype).save_pretrained(path)
        build_tokenizer().save_pretrained(path)
    return path


def load_base(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The base as a live model."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()


def build_adapter(
    directory: Path, architecture: str = "llama", *, dtype: torch.dtype = torch.float32, **settings: Any
) -> tuple[Path, Path, PreTrainedModel]:
    """Write a base and a LoRA with random factors; returns their paths and the model that peft merges."""
    path = build_base(directory, architecture)
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 8, **settings})
    model = shaken(get_peft_model(load_base(path), config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.to(dtype))
    model.save_pretrained(directory / "adapter")
    tensors = load_file(directory / "adapter" / "adapter_model.safetensors")
    save_file({k: v.to(dtype) for k, v in tensors.items()}, directory / "adapter" / "adapter_model.safetensors")
    return path, directory / "adapter", model.merge_and_unload()
