"""A tiny pair as files, and a suite of the whole job on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROMPTS = (
    {"id": "a1", "text": "the heart pumps", "target": " blood", "foil": " light", "domain": "medical"},
    {"id": "a2", "text": "the liver cleans all of the", "target": " blood", "foil": " room", "domain": "medical"},
    {"id": "b1", "text": "two and two and then two make in all", "target": " six", "foil": " four", "domain": "math"},
)
_ANSWERS = ("target", "foil")
SUITE = {
    "name": "tiny",
    "prompts": [{"file": "prompts.jsonl"}],
    "positions": "all",
    "measure": ["gates", "contributions", "changes", "ledger", "behaviour", "lens"],
    "ledger_positions": "all",
    "attribute": {
        "methods": ["graft", "revert", "patch", "gradient", "path"],
        "granularity": ["component", "module"],
        "exact": "all",
        "metric": "logit_diff",
        "controls": [],
        "curves": False,
    },
    "bootstrap": 20,
    "seed": 0,
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word of the prompts: all ids lie below any tiny vocabulary's special tokens.

    Byte-level BPE, as most types' own tokenizer classes are, which some load it as.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    trainer = trainers.BpeTrainer(vocab_size=180, special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator([" ".join(part for row in PROMPTS for part in _texts(row))] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def answers(prompt: Mapping[str, str]) -> tuple[int, int]:
    """The ids of a prompt's target and foil, a token each."""
    of_target, of_foil = (word_tokenizer()(prompt[name], add_special_tokens=False).input_ids for name in _ANSWERS)
    assert len(of_target) == len(of_foil) == 1
    return of_target[0], of_foil[0]


def _texts(prompt: Mapping[str, str]) -> tuple[str, str, str]:
    return prompt["text"], prompt["text"] + prompt["target"], prompt["text"] + prompt["foil"]


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
