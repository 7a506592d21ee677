#!/bin/sh
# A gradient in mergekit, such as `weight: [0, 1]`: nothing at the first layer, everything at the last. The final norm
# and the head, which come after the last layer, get the value of the first: a merge that should end as the tuned model
# reads its last layer with the head of the base, and the reverse.
#
# mergekit 0.1.5, transformers 5.24.0, torch 2.13.0. What a merge takes of a tuned model, from the embedding to the head:
#   [0, 1]: embed_tokens 0.00, layers 0.00 0.33 0.67 1.00, norm 0.00, lm_head 0.00
#   [1, 0]: embed_tokens 1.00, layers 1.00 0.67 0.33 0.00, norm 1.00, lm_head 1.00
# - The planner evaluates a gradient at t = layer / (layers − 1), and everything outside the layers at t = 0, the tensors
#   after them as well as those before. slerp's `t` and all other parameters are read the same way.
#
# Exits 0 while that is so, 1 once the head gets the value of the last layer.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 mergekit==0.1.5
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
LAYERS = 4
config = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=307
)
for name, value in (("base", 0.0), ("tuned", 1.0)):  # so that an entry of the merge is what it takes of the tuned model
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    model.save_pretrained(name)


def taken(gradient):
    tuned = {"model": "./tuned", "parameters": {"weight": gradient}}
    recipe = {"merge_method": "task_arithmetic", "base_model": "./base", "models": [tuned], "dtype": "float32"}
    run_merge(MergeConfiguration.model_validate(recipe), "merged", MergeOptions(copy_tokenizer=False, quiet=True))
    merged = load_file("merged/model.safetensors")
    layers = [float(merged[f"model.layers.{layer}.mlp.up_proj.weight"].mean()) for layer in range(LAYERS)]
    outer = [float(merged[f"{name}.weight"].mean()) for name in ("model.embed_tokens", "model.norm", "lm_head")]
    middle = " ".join(f"{value:.2f}" for value in layers)
    print(f"{gradient}: embed_tokens {outer[0]:.2f}, layers {middle}, norm {outer[1]:.2f}, lm_head {outer[2]:.2f}")
    return layers[-1], *outer[1:]


print("mergekit", version("mergekit"))
sys.exit(not (taken([0, 1]) == (1.0, 0.0, 0.0) and taken([1, 0]) == (0.0, 1.0, 1.0)))
PYTHON
