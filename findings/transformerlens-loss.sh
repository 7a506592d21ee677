#!/bin/sh
# The loss of a batch of prompts in TransformerLens: padding on the right is counted as text to predict, padding on the
# left is not. One batch of two prompts has two losses, and the default side gives the wrong one.
#
# transformer-lens 4.3.0, transformers 5.24.0, torch 2.13.0. Loss of a prompt of 3 words and one of 30:
#   apart: 4.5686 and 4.9570, by words 4.9217
#   as a batch: 4.5067 by default, 4.5067 padded right, 4.9217 padded left
# - A causal model needs no mask for padding on the right, so the bridge makes none for it, only for the left. The loss
#   takes the mask of the forward pass, finds none, and averages over all 60 positions, of which 27 are padding.
# - Token ids with an `attention_mask` of one's own give the loss of the left side.
#
# Exits 0 while that is so, 1 once both sides agree.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 transformer-lens==4.3.0
cd "$place"
TQDM_DISABLE=1 "$place/venv/bin/python" - <<'PYTHON'
import logging
import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logging.disable(logging.WARNING)
special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
known = {name: i for i, name in enumerate(special.values())} | {f"w{i}": i for i in range(4, 99)}
words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, name_or_path="model", **special)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
torch.manual_seed(0)
config = LlamaConfig(**SIZES, vocab_size=99, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
config.architectures = ["LlamaForCausalLM"]
model = LlamaForCausalLM(config).eval()
model.save_pretrained("model")
tokenizer.save_pretrained("model")
bridge = TransformerBridge.boot_transformers("model", hf_model=model, tokenizer=tokenizer, device="cpu")

prompts = ["w5 w6 w7", " ".join(f"w{i}" for i in range(10, 40))]
with torch.no_grad():
    short, long = (float(bridge(prompt, return_type="loss")) for prompt in prompts)
    default = float(bridge(prompts, return_type="loss"))
    right, left = (float(bridge(prompts, return_type="loss", padding_side=side)) for side in ("right", "left"))
by_words = (3 * short + 30 * long) / 33
print(f"apart: {short:.4f} and {long:.4f}, by words {by_words:.4f}")
print(f"as a batch: {default:.4f} by default, {right:.4f} padded right, {left:.4f} padded left")
sys.exit(not (default == right and right < by_words - 0.1 and abs(left - by_words) < 1e-4))
PYTHON
