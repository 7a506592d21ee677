#!/bin/sh
# A bridge of TransformerLens on an image-text model: it starts pip, which installs torchvision into the environment
# that runs, and with it whatever torch that torchvision asks for. Nobody asked for it, and nothing is printed.
#
# transformer-lens 4.3.0, transformers 5.23.0, torch 2.13.0. Programs started while a bridge is made, each stopped here:
#   llama: []
#   gemma3: ['pip install torchvision -q']
# - The bridge wants the model's image processor, which needs torchvision. Where the import fails, a helper runs
#   `pip install torchvision -q` (or uv's) by itself, without a version, and swallows what goes wrong.
# - The model was live already, and only text was to be read: no processor was needed. With torch pinned to a local
#   build, the newest torchvision replaces it by another version of torch.
#
# Exits 0 while that is so, 1 once no program is started.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 transformer-lens==4.3.0
cd "$place"
"$place/venv/bin/python" - <<'PYTHON'
import sys

import torch
from tokenizers import Tokenizer, models
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformer_lens.model_bridge import TransformerBridge

started = []


def watch(event, arguments):
    """Keep what is started, and stop it before it starts."""
    if event == "subprocess.Popen":
        command = [str(part) for part in arguments[1]]
        if "install" in command:
            started.append(" ".join(command[command.index("pip") :]))
            raise RuntimeError("not here")


sys.addaudithook(watch)
words = Tokenizer(models.WordLevel({"<bos>": 0, "<eos>": 1, "<pad>": 2, "<unk>": 3, "word": 4}, unk_token="<unk>"))
special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64}
EYES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def programs(name, model):
    started.clear()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, name_or_path=name, **special)
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
    model.config.architectures = [type(model).__name__]
    TransformerBridge.boot_transformers(name, hf_model=model.eval(), tokenizer=tokenizer, device="cpu")
    found = sorted(set(started))
    print(f"{name}: {found}")
    return found


llama = programs("llama", LlamaForCausalLM(LlamaConfig(**TEXT)))
eyes = SiglipVisionConfig(**EYES, image_size=28, patch_size=14)
both = Gemma3Config(text_config=Gemma3TextConfig(**TEXT), vision_config=eyes, mm_tokens_per_image=1, image_token_index=60,
                    boi_token_index=61, eoi_token_index=62)
gemma = programs("gemma3", Gemma3ForConditionalGeneration(both))
sys.exit(not (llama == [] and gemma == ["pip install torchvision -q"]))
PYTHON
