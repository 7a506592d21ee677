#!/bin/sh
# Two Llama files as llama.cpp's converter writes them, which transformers loads as another model, without a word.
#
# transformers 5.23.0, gguf 0.19.0, torch 2.13.0. Relative error of the logits against the model that was written:
#   plain: 0.0000
#   no head_count_kv: 1.1986
#   llama3 rope: 0.9992
#   llama3 rope, against the same weights with a default one: 0.0000
# - head_count_kv is not written for a model whose configuration has no num_key_value_heads (the first Llama's). The
#   rows of q and k, which the converter reorders, then stay reordered.
# - The scaling of a llama3 rope is a tensor, rope_freqs.weight. It is dropped, and the model has a default rope.
#
# Exits 0 while both files load that way, 1 once one of them loads as written.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import sys

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

transformers.logging.set_verbosity_warning()
HEADS, WIDTH = 4, 16
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 32, "rope_theta": 10000.0}


def built(rope):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HEADS * WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=307,
        max_position_embeddings=256,
        initializer_range=0.15,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
    )
    return LlamaForCausalLM(config).eval()


def write(model, name, kv_heads):
    config = model.config
    writer = gguf.GGUFWriter(name, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    if kv_heads:
        writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_parameters["rope_type"] == "llama3":
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
        plain = 1.0 / 10000.0 ** (torch.arange(0, WIDTH, 2) / WIDTH)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).float().numpy())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        if "q_proj" in key or "k_proj" in key:
            value = value.reshape(HEADS, 2, WIDTH // 2, -1).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(key.removesuffix(".weight")) + ".weight", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def error(rope, name, kv_heads=True, against=None):
    model = built(rope)
    write(model, name, kv_heads)
    model = built(against or rope)
    loaded = AutoModelForCausalLM.from_pretrained(".", gguf_file=name, dtype=torch.float32)
    ids = torch.arange(5, 165)[None]
    with torch.no_grad():
        written, found = model(ids).logits, loaded(ids).logits
    return float((found - written).norm() / written.norm())


DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
print("transformers", transformers.__version__)
errors = [error(DEFAULT, "a.gguf"), error(DEFAULT, "b.gguf", kv_heads=False), error(ROPE, "c.gguf")]
errors.append(error(ROPE, "d.gguf", against=DEFAULT))
names = ("plain", "no head_count_kv", "llama3 rope", "llama3 rope, against the same weights with a default one")
for case, found in zip(names, errors):
    print(f"{case}: {found:.4f}")
sys.exit(not (max(errors[0], errors[3]) < 1e-4 and min(errors[1], errors[2]) > 0.1))
PYTHON
