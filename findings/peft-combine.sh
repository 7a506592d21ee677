#!/bin/sh
# peft's add_weighted_adapter with one adapter, weight 1 and the combination that its documentation calls precise: what
# comes out should be the adapter. It is for a plain LoRA. For other settings of the same LoRA it is another model.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0. ‖logits of the combination − logits of the adapter‖, in units of what
# the adapter changes:
#   plain: 0.00
#   use_rslora: 2.55
#   use_dora: 0.41
#   lora_bias: 0.79
#   modules_to_save: 0.95
# - The scale of each adapter goes into the new factors, whose config gets lora_alpha = r so that its own scale is 1.
#   The rest of the config is the first adapter's: with rsLoRA the scale becomes r/√r, and all is counted √r times.
# - Only A and B are combined. DoRA's magnitudes start anew, biases are zero, trained modules are the base's again.
#
# Exits 0 while that is so, 1 once one of the four comes out as the adapter, or is refused.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import sys

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

CASES = {
    "plain": {},
    "use_rslora": {"use_rslora": True},
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
}


def tuned(options):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=307,
        initializer_range=0.1,
    )
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "down_proj"], **options)
    model = get_peft_model(LlamaForCausalLM(config), lora).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape)
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5, 45)[None]).logits


print("peft", peft.__version__)
found = {}
for name, options in CASES.items():
    model = tuned(options)
    with model.disable_adapter():
        base = logits(model)
    adapter = logits(model)
    model.add_weighted_adapter(["default"], [1.0], "combined", combination_type="cat")
    model.set_adapter("combined")
    found[name] = float((logits(model) - adapter).norm() / (adapter - base).norm())
    print(f"{name}: {found[name]:.2f}")
plain = found.pop("plain")
sys.exit(not (plain < 1e-4 and min(found.values()) > 0.1))
PYTHON
