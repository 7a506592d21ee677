#!/bin/sh
# A checkpoint that transformers 5 saved, read by transformers 4: every weight is the same, the positions are another
# model's, and nothing is printed. Whoever tunes with one and evaluates with the other evaluates another model.
#
# transformers 5.24.0 writes, 4.57.6 reads, torch 2.13.0. Relative difference of the logits, and the base of the rope:
#   llama_10000: 0.0000, 10000.0
#   llama_500000: 0.9789, 10000.0
#   llama_500000_yarn: 1.0631, 10000.0
#   qwen3_1000000: 0.8288, 10000.0
# - 5 writes the base and the scaling into `rope_parameters` alone. 4 reads `rope_theta` and `rope_scaling`, finds
#   neither, and takes its defaults: a base of 10000 and no scaling. It keeps `rope_parameters` as a word it doesn't know.
#
# Exits 0 while that is so, 1 once the older version reads the base or refuses the file.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0
"$place/venv/bin/pip" install --quiet --target "$place/older" transformers==4.57.6
cd "$place"
cat > save.py <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

transformers.logging.disable_progress_bar()
print("written by transformers", transformers.__version__)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 307, "max_position_embeddings": 1024, "initializer_range": 0.15}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 500000.0}
MODELS = {
    "llama_10000": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters={"rope_theta": 10000.0})),
    "llama_500000": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters={"rope_theta": 500000.0})),
    "llama_500000_yarn": (LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=YARN)),
    "qwen3_1000000": (Qwen3ForCausalLM, Qwen3Config(**SIZES, rope_parameters={"rope_theta": 1000000.0})),
}
for name, (kind, config) in MODELS.items():
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(name)
    with torch.no_grad():
        torch.save(model(torch.arange(5, 205)[None]).logits, f"{name}.pt")
PYTHON
cat > read.py <<'PYTHON'
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

print("read by transformers", transformers.__version__)
found = {}
for name in sorted(path.stem for path in Path().glob("*.pt")):
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    written = torch.load(f"{name}.pt")
    with torch.no_grad():
        found[name] = float((model(torch.arange(5, 205)[None]).logits - written).norm() / written.norm())
    print(f"{name}: {found[name]:.4f}, {model.config.rope_theta}")
same = found.pop("llama_10000")
sys.exit(not (same < 1e-4 and min(found.values()) > 0.1))
PYTHON
"$place/venv/bin/python" save.py
PYTHONPATH="$place/older" "$place/venv/bin/python" read.py
