"""Tiny random-weight checkpoint pairs of many architectures, for tests.

Sizes are pairwise distinct (d_model 48, d_ff 80, heads × d_head 64, kv 32, vocabulary 307), so that no test passes
because two dimensions happen to agree. The tuned side is the base plus a seeded random step on every parameter.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

TEXT = (
    "The heart pumps blood through the body. The liver cleans the blood. A lamp gives light in the dark room. "
    "Seven and five make twelve. The capital of France is Paris. Question: what is two plus two? Answer: four."
)
_SIZES = dict(
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=307,
    max_position_embeddings=64,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
    initializer_range=0.15,
)
_MOE = {**_SIZES, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_GPT2 = dict(n_embd=48, n_layer=3, n_head=4, n_inner=80, n_positions=64, vocab_size=307, bos_token_id=0, eos_token_id=1)
_NEOX = {key: value for key, value in _SIZES.items() if key not in ("head_dim", "num_key_value_heads")}
_ENDS = dict(vocab_size=307, bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.15)
_DELTA = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=12, linear_value_head_dim=14)
_QWEN3_NEXT = {**_MOE, **_DELTA, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_SSM = dict(mamba_d_ssm=96, mamba_n_heads=6, mamba_d_head=16, mamba_n_groups=2, mamba_d_state=9, mamba_chunk_size=8)
CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", _SIZES),
    "mistral": ("MistralConfig", _SIZES),
    "qwen2": ("Qwen2Config", {**_SIZES, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", _SIZES),
    "gemma": ("GemmaConfig", _SIZES),
    "gemma2": ("Gemma2Config", {**_SIZES, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3TextConfig", {**_SIZES, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3Config", {k: v for k, v in _SIZES.items() if k != "head_dim"} | {"hidden_size": 64}),
    "olmo2": ("Olmo2Config", _SIZES),
    "starcoder2": ("Starcoder2Config", _SIZES),
    "gpt2": ("GPT2Config", _GPT2),
    "neox": ("GPTNeoXConfig", _NEOX),
    "granite": ("GraniteConfig", {**_SIZES, "residual_multiplier": 0.3, "logits_scaling": 4.0}),
    "falcon": ("FalconConfig", {**_NEOX, "ffn_hidden_size": 80}),  # one norm, attention and MLP in parallel
    "mixtral": ("MixtralConfig", {**_SIZES, "num_local_experts": 3}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_MOE, "shared_expert_intermediate_size": 56, "mlp_only_layers": [1]}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_MOE, "tie_word_embeddings": True}),
    "gpt_oss": ("GptOssConfig", {**_SIZES, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**_QWEN3_NEXT, "shared_expert_intermediate_size": 56, "mlp_only_layers": [0]},
    ),
    "falcon_h1": ("FalconH1Config", {**_SIZES, **_SSM, "ssm_out_multiplier": 0.5, "lm_head_multiplier": 0.7}),
    "mamba": ("MambaConfig", {**_ENDS, "hidden_size": 48, "num_hidden_layers": 3, "state_size": 9}),
    "openai-gpt": ("OpenAIGPTConfig", _GPT2),
}
#: A tied matrix of words with blocks so small beside it that a streamed model keeps it.
WIDE: tuple[str, dict[str, object]] = (
    "Qwen2Config",
    {**_SIZES, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    | {"tie_word_embeddings": True},
)
#: Mixtures of experts.
MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"]
#: Architectures with mixers other than attention: beside it from layer to layer, in one block with it, or alone.
HYBRIDS = ["qwen3_next", "falcon_h1", "mamba"]
#: Architectures that no rule of tv's names.
BY_NAME = ["openai-gpt"]
#: Architectures without experts that the whole job runs on. A mistral has the modules and the forward pass of a llama.
SUPPORTED = [name for name in CONFIGS if name not in (*MIXTURES, *HYBRIDS, *BY_NAME, "mistral")]
#: Architectures whose modules tv names by its own rules.
MEASURED = SUPPORTED + MIXTURES


def build_pair(
    directory: Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    step: float = 0.02,
    dtype: torch.dtype = torch.float32,
) -> tuple[Path, Path]:
    """Write a random (base, tuned) pair of `architecture` below `directory` and return the two paths."""
    kept, state = _pair(architecture, json.dumps(CONFIGS[architecture]), seed, step, dtype)
    paths = directory / f"{architecture}-base", directory / f"{architecture}-tuned"
    for made, path in zip(kept, paths, strict=True):
        shutil.copytree(made, path, copy_function=shutil.copy, dirs_exist_ok=True)
    torch.set_rng_state(state)  # as it is after making one
    return paths


@cache
def _pair(
    architecture: str, _config: str, seed: int, step: float, dtype: torch.dtype
) -> tuple[tuple[Path, Path], torch.Tensor]:
    """A pair to copy, which takes a tenth of the time of making one, and the state of torch's generator after it."""
    directory = Path(tempfile.mkdtemp(prefix="pair-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    base = build_model(architecture, seed=seed)
    tuned = build_model(architecture, seed=seed)
    perturb(tuned, step, seed=seed + 1)
    paths = directory / "base", directory / "tuned"
    tokenizer = build_tokenizer()
    for path, model in zip(paths, (base, tuned), strict=True):
        model.to(dtype).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return paths, torch.get_rng_state()


def build_model(architecture: str = "llama", *, seed: int = 0) -> PreTrainedModel:
    """A random float32 model; gains and biases are random too, so that none hides behind 1 or 0."""
    name, sizes = CONFIGS[architecture]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def perturb(model: PreTrainedModel, step: float, *, seed: int) -> None:
    """Move every parameter by `step` × its norm, in a seeded random direction."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (step * parameter.norm() / noise.norm()).to(parameter.dtype))


def build_tokenizer(vocab_size: int = 307) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with <bos> 0, <eos> 1, <pad> 2, and a BOS put before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=64
    )
    assert len(fast) <= vocab_size
    return fast


PROMPTS = [
    {"id": "a1", "text": "The heart pumps", "target": " blood", "foil": " light", "domain": "medical"},
    {"id": "a2", "text": "The liver cleans the", "target": " blood", "foil": " room", "domain": "medical"},
    {"id": "b1", "text": "Seven and five make", "target": " twelve", "foil": " four", "domain": "math"},
    {
        "id": "b2",
        "text": "Question: what is two plus two? Answer:",
        "target": " four",
        "foil": " twelve",
        "domain": "math",
    },
    {"id": "c1", "text": "The capital of France is", "target": " Paris", "foil": " two", "domain": "general"},
    {"id": "c2", "text": "A lamp gives light in the dark room."},
]


def write_prompts(path: Path, rows: list[dict[str, str]] | None = None) -> Path:
    """Write `rows` (default PROMPTS) as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or PROMPTS), encoding="utf-8")
    return path


def write_suite(directory: Path, base: Path, tuned: Path, /, **changes: object) -> Path:
    """Write prompts and a suite over one pair into `directory`; `changes` override suite keys. Returns the suite."""
    write_prompts(directory / "prompts.jsonl")
    suite = {
        "name": "tiny",
        "base": str(base),
        "tuned": {"moved": str(tuned)},
        "prompts": [{"file": "prompts.jsonl"}],
        "positions": "all",
        "measure": ["gates", "contributions", "changes", "ledger", "behaviour"],
        "attribute": {"methods": ["graft", "revert"], "metric": "logit_diff", "curves": False, "controls": []},
        "seed": 0,
    } | changes
    path = directory / "suite.yaml"
    path.write_text(json.dumps(suite), encoding="utf-8")  # JSON is YAML
    return path
