#!/bin/sh
# A Youtu checkpoint whose padding token has an embedding: transformers loads it, and then sets that row to zero,
# without a word. The live model has another embedding of the token than its files.
#
# transformers 5.23.0, torch 2.13.0. Rows of the embedding that differ from the file, and the norm of row 3 in each:
#   youtu: rows [3], norms 5.6569 and 0.0000
#   llama: rows [], norms 5.6569 and 5.6569
# - After loading, transformers initialises what no file held, and leaves a tensor alone that is marked as loaded.
#   Youtu's `_init_weights` hands over `weight.data[padding_idx]`, a new tensor without the mark. The same line of all
#   other models asks for the mark first.
#
# Exits 0 while that is so, 1 once the row is loaded as it is stored.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, YoutuConfig, YoutuForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 4, "vocab_size": 307, "pad_token_id": 3, "tie_word_embeddings": False}
HEADS = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
PAD, EMBEDDING = 3, "model.embed_tokens.weight"


def rows(name, model):
    with torch.no_grad():
        model.get_input_embeddings().weight[PAD] = 1.0
    model.save_pretrained(name)
    stored = load_file(f"{name}/model.safetensors")[EMBEDDING]
    loaded = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).get_input_embeddings().weight.detach()
    other = (loaded != stored).any(1).nonzero()[:, 0].tolist()
    print(f"{name}: rows {other}, norms {stored[PAD].norm():.4f} and {loaded[PAD].norm():.4f}")
    return other


print("transformers", transformers.__version__)
youtu = rows("youtu", YoutuForCausalLM(YoutuConfig(**SIZES, **HEADS)))
llama = rows("llama", LlamaForCausalLM(LlamaConfig(**SIZES)))
sys.exit(not (youtu == [PAD] and llama == []))
PYTHON
