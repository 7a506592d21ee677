"""What the capture benchmarks run on: a random pair shaped like a Qwen2, and prompts of one length."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from probes.suite import Suite
from tv.architecture.resolve import skeleton
from tv.prompts.encoding import Batch, Encoded, encode
from tv.prompts.files import Prompt


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2."""

    d_model: int
    d_ff: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    def cut(self, layers: int | None = None, vocab: int | None = None, width: int | None = None) -> Shape:
        """The same with fewer layers or words, for a quick try; or narrower, with as many heads fewer."""
        share = (width or self.d_model) / self.d_model
        sizes = {"d_model": round(self.d_model * share), "d_ff": round(self.d_ff * share)}
        heads = self.kv_heads * max(1, round(self.heads * share / self.kv_heads))  # as many to each of keys and values
        return replace(self, layers=layers or self.layers, vocab=vocab or self.vocab, heads=heads, **sizes)


SMOLLM2_135M = Shape(576, 1536, 30, 9, 3, 49152, True)
SHAPE_3B = Shape(3072, 8192, 28, 24, 8, 128256, True)
QWEN2_05B = Shape(896, 4864, 24, 14, 2, 151936, True)
QWEN2_7B = Shape(3584, 18944, 28, 28, 4, 152064, False)


def live_pair(
    shape: Shape, *, dtype: torch.dtype = torch.float32, device: str = "cpu", step: float = 0.02
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A random base, and the same with every parameter moved by `step` × its norm in a random direction."""
    config = config_of(shape)
    torch.manual_seed(0)
    with torch.device(device):
        base = Qwen2ForCausalLM._from_config(config, dtype=dtype).eval().requires_grad_(False)
    tuned = copy.deepcopy(base)
    for parameter in tuned.parameters():
        for row in parameter.split(8192):  # in pieces: no second embedding is held
            noise = torch.randn_like(row)
            row.add_(noise, alpha=float(step * row.float().norm() / noise.float().norm()))
    return base, tuned


def config_of(shape: Shape) -> Qwen2Config:
    """The configuration of a Qwen2 of these sizes."""
    config = Qwen2Config(
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
    )
    config.architectures = [Qwen2ForCausalLM.__name__]
    return config


def write_pair(directory: Path, shape: Shape, *, threads: int = 1) -> None:
    """A base of normal numbers and the same with every parameter moved a little, as bfloat16, one file a layer.

    They lie in `directory` as `base` and `tuned`; one layer is in memory at a time.
    """
    config = config_of(shape)
    groups: dict[str, dict[str, torch.Size]] = {}
    for name, value in skeleton(config).named_parameters():
        groups.setdefault(".".join(name.split(".")[:3]), {})[name] = value.shape
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    for i, sizes in enumerate(groups.values()):
        base, tuned = {}, {}
        for name, size in sizes.items():
            value = torch.randn(size, generator=generator).mul_(0.02).add_(float(name.endswith("norm.weight")))
            base[name] = value.bfloat16()
            tuned[name] = value.add_(torch.randn(size, generator=generator), alpha=0.0004).bfloat16()
        for side, tensors in (("base", base), ("tuned", tuned)):
            (directory / side).mkdir(parents=True, exist_ok=True)
            save_file(tensors, directory / side / f"model-{i:05d}.safetensors", {"format": "pt"})
    tokenizer = word_tokenizer(shape.vocab)
    where = {name: f"model-{i:05d}.safetensors" for i, sizes in enumerate(groups.values()) for name in sizes}
    for side in ("base", "tuned"):
        tokenizer.save_pretrained(directory / side)
        index = json.dumps({"metadata": {}, "weight_map": where})
        (directory / side / "model.safetensors.index.json").write_text(index, encoding="utf-8")
        config.save_pretrained(directory / side)


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is the word `wi`."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")


def random_prompts(count: int, tokens: int, tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Prompts of `tokens` random tokens each, the last of which is the target; every one has a foil."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, len(tokenizer) - 1, (count, tokens), generator=generator).tolist()
    prompts = [
        Prompt(f"p{i:05d}", "random", "random", " ".join(f"w{w}" for w in own[:-1]), f" w{own[-1]}", f" w{own[-1] + 1}")
        for i, own in enumerate(ids)
    ]
    return encode(prompts, tokenizer, tokens)


def suite_of(measure: Sequence[str], batch_size: int, **settings: object) -> Suite:
    """A suite that measures `measure` at all positions of a pair that is already live."""
    fixed = {"name": "benchmark", "base": "base", "tuned": {"tuned": "tuned"}, "prompts": [{"file": "random.jsonl"}]}
    return Suite.model_validate({**fixed, "measure": measure, "batch_size": batch_size, **settings})


def bare(base: PreTrainedModel, tuned: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Both forward passes with no hook at all; both models' logits."""
    with torch.inference_mode():
        inputs = {"input_ids": batch.input_ids.to(base.device), "attention_mask": batch.attention_mask.to(base.device)}
        return base(**inputs, use_cache=False).logits, tuned(**inputs, use_cache=False).logits
