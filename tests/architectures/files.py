"""A tiny pair as files, and a suite of the whole job on them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROMPTS = (
    {"id": "a1", "text": "the heart pumps", "target": " blood", "foil": " light", "domain": "medical"},
    {"id": "a2", "text": "the liver cleans all of the", "target": " blood", "foil": " room", "domain": "medical"},
    {"id": "b1", "text": "two and two and then two make in all", "target": " six", "foil": " four", "domain": "math"},
)
SUITE = {
    "name": "tiny",
    "prompts": [{"file": "prompts.jsonl"}],
    "positions": "all",
    "measure": ["gates", "contributions", "changes", "ledger", "behaviour", "lens"],
    "ledger_positions": "all",
    "attribute": {
        "methods": ["graft", "revert", "patch", "gradient", "path"],
        "granularity": ["component", "module"],
        "metric": "logit_diff",
        "controls": [],
        "curves": False,
    },
    "bootstrap": 20,
    "seed": 0,
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word: the ids of all prompts lie below any tiny vocabulary's special tokens."""
    words = " ".join(" ".join((row["text"], row["target"], row["foil"])) for row in PROMPTS).split()
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<bos>", "<eos>", "<pad>", "<unk>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def written(base: PreTrainedModel, tuned: PreTrainedModel, directory: Path) -> Path:
    """The pair, its prompts and a suite of the whole job as files in `directory`; the suite's path."""
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(directory / name)
        word_tokenizer().save_pretrained(directory / name)
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS), encoding="utf-8")
    pair = {"base": str(directory / "base"), "tuned": {"moved": str(directory / "tuned")}}
    suite = directory / "suite.yaml"
    suite.write_text(json.dumps(SUITE | pair), encoding="utf-8")  # JSON is YAML
    return suite
