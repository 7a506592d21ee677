#!/bin/sh
# lm-eval with a bfloat16 model: log-likelihoods are bfloat16 sums. An answer at -350 nats is rounded to the nearest
# even number, so answers tie, and of tied ones the first listed wins. The same questions have another accuracy when the
# right answer is listed last instead of first.
#
# lm_eval 0.4.13, transformers 5.24.0, torch 2.13.0. Accuracy with the right answer first and last, questions whose best
# answers tie, and different log-likelihoods among the 800 answers:
#   default: 0.2550 first, 0.1800 last, 40 of 200 tie, 14 values
#   softmax_dtype=float32: 0.2050 first, 0.2050 last, 0 of 200 tie, 800 values
# - HFLM takes log_softmax in the dtype of the logits, gathers the tokens' values and sums them in that dtype, unless
#   softmax_dtype is given. The sum is turned into a Python float after the rounding, and so looks exact.
# - A base and its fine-tune that differ by less than a nat there read as equal, or as 2 apart.
#
# Exits 0 while that is so, 1 once the order of the answers does not matter.
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
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logging.disable(logging.WARNING)
words = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 307)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=307, initializer_range=0.1)).bfloat16()


def text(n):
    return " ".join(f"w{i}" for i in torch.randint(2, 307, (n,)).tolist())


asked = [(text(5), [text(60) for _ in range(4)]) for _ in range(200)]  # the first answer is the right one


def evaluated(backwards, dtype):
    """The accuracy, and the log-likelihoods of the answers of every question."""
    rows = [{"question": question, "answers": answers[::-1] if backwards else answers} for question, answers in asked]
    task = {"task": "choices", "output_type": "multiple_choice", "dataset_path": "none", "test_split": "test"}
    task |= {"custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)}}
    task |= {"metric_list": [{"metric": "acc"}]}
    task |= {"doc_to_text": "{{question}}", "doc_to_choice": "{{answers}}", "doc_to_target": 3 if backwards else 0}
    results = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, softmax_dtype=dtype),
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    found = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in results["samples"]["choices"]]
    return results["results"]["choices"]["acc,none"], found


depends = []
for dtype in (None, "float32"):
    first, found = evaluated(False, dtype)
    last, _ = evaluated(True, dtype)
    ties, values = sum(each.count(max(each)) > 1 for each in found), len({value for each in found for value in each})
    name = f"softmax_dtype={dtype}" if dtype else "default"
    print(f"{name}: {first:.4f} first, {last:.4f} last, {ties} of {len(found)} tie, {values} values")
    depends.append(first != last)
sys.exit(depends != [True, False])
PYTHON
