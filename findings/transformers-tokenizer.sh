#!/bin/sh
# A tokenizer folder of transformers 4, read by transformers 5: tokenizer.json holds a normalizer and a rule that splits
# numbers, and both are gone, without a word. Every prompt reaches the model as ids that it was not trained on, and
# saving the tokenizer makes that permanent.
#
# transformers 4.57.6 writes and reads, 5.24.0 reads. Tokens of "Paid 1234567 in 2025", by folder (its class: + Fast):
#   4.57.6, GPT2Tokenizer: paid Ġ 123 456 7 Ġin Ġ 202 5
#   4.57.6, PreTrainedTokenizer: paid Ġ 123 456 7 Ġin Ġ 202 5
#   5.24.0, GPT2Tokenizer: P ai d Ġ 12 345 67 Ġin Ġ 202 5
#   5.24.0, PreTrainedTokenizer: paid Ġ 123 456 7 Ġin Ġ 202 5
# - 5 gives a class that builds its own tokenizer only the vocabulary, the merges and the post-processor of the file;
#   normalizer, pre-tokenizer and decoder are those that the class has in its code (GPT-2's and GPT-NeoX' among them).
#   4 took the file as it is, whatever the class.
#
# Exits 0 while that is so, 1 once both versions give the same tokens.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/older"
python3 -m venv "$place/newer"
"$place/older/bin/pip" install --quiet transformers==4.57.6
"$place/newer/bin/pip" install --quiet transformers==5.24.0
cd "$place"
cat > write.py <<'PYTHON'
import random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

random.seed(0)
words = "paid received in the year of total cost".split()
texts = [" ".join([*random.choices(words, k=4), str(random.randrange(10**7))]) for _ in range(4000)]
tokenizer = Tokenizer(models.BPE())
tokenizer.normalizer = normalizers.Lowercase()
threes = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([threes, pre_tokenizers.ByteLevel(add_prefix_space=False)])
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(
    vocab_size=1500, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
)
tokenizer.train_from_iterator(texts, trainer)
for kind in (GPT2TokenizerFast, PreTrainedTokenizerFast):
    kind(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(kind.__name__.removesuffix("Fast"))
PYTHON
cat > read.py <<'PYTHON'
import json
import sys

import transformers
from transformers import AutoTokenizer

version, tokens = transformers.__version__, {}
for name in ("GPT2Tokenizer", "PreTrainedTokenizer"):
    tokens[name] = AutoTokenizer.from_pretrained(name).tokenize("Paid 1234567 in 2025")
    print(f"{version}, {name}:", *tokens[name])
if version.startswith("4"):
    json.dump(tokens, open("older.json", "w"))
    sys.exit()
older = json.load(open("older.json"))
sys.exit(not (tokens["PreTrainedTokenizer"] == older["GPT2Tokenizer"] != tokens["GPT2Tokenizer"]))
PYTHON
"$place/older/bin/python" write.py
"$place/older/bin/python" read.py
"$place/newer/bin/python" read.py
