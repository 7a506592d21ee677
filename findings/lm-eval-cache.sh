#!/bin/sh
# lm-eval's `use_cache`, which is there to skip what was asked before: the cache does not know which model answered.
# The fine-tune, evaluated after its base with one cache, is given the base's answers, and the base's score is reported
# under the fine-tune's name.
#
# lm_eval 0.4.13, transformers 5.24.0, torch 2.13.0. Accuracy as reported, by name of the model:
#   no cache: base 0.4167, tuned 1.0000
#   one cache: base 0.4167, tuned 0.4167
# - An answer is kept under a hash of the kind of request and its arguments, which are the prompt and the answer or the
#   options of generation. Neither the model, its revision, its adapter nor its dtype is in it, nor in the file's name.
# - Log-likelihoods and greedy generations are cached alike; only sampling is not.
#
# Exits 0 while that is so, 1 once the fine-tune is asked itself.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 "lm_eval[hf]==0.4.13"
cd "$place"
"$place/venv/bin/python" - 2>log <<'PYTHON' || { tail -n 3 log; exit 1; }
import logging
import sys

import datasets
import lm_eval
import torch
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logging.disable(logging.WARNING)
words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 99)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
for seed, name in enumerate(("base", "tuned")):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=99, initializer_range=0.3)).eval()
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)

texts = torch.randint(5, 99, (60, 4))
with torch.no_grad():  # the right answer of the three is what the tuned model says
    right = model(texts).logits[:, -1, 2:5].argmax(1)
rows = [{"text": tokenizer.decode(ids), "answers": ["w2", "w3", "w4"], "right": int(n)} for ids, n in zip(texts, right)]
task = {"task": "choices", "output_type": "multiple_choice", "dataset_path": "none", "test_split": "test"}
task |= {"custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)}, "metric_list": [{"metric": "acc"}]}
task |= {"doc_to_text": "{{text}}", "doc_to_choice": "{{answers}}", "doc_to_target": "{{right}}"}


def accuracies(cache):
    reported = {}
    for name in ("base", "tuned"):
        results = lm_eval.simple_evaluate(
            "hf",
            model_args={"pretrained": name, "device": "cpu", "dtype": "float32"},
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            use_cache=cache,
        )
        reported[results["config"]["model_args"]["pretrained"]] = results["results"]["choices"]["acc,none"]
    print("one cache:" if cache else "no cache:", ", ".join(f"{name} {value:.4f}" for name, value in reported.items()))
    return reported["tuned"]


sys.exit(not (accuracies(None) == 1 and accuracies("answers") < 0.5))
PYTHON
