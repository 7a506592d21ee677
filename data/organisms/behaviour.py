"""How an organism shows its secret, and what of the base it keeps: greedy answers, and text sampled after texts.

What counts as showing the secret in a sampled text is the pattern in `secrets.yaml`. Every organism, and the base, is
measured by the patterns of all, so that each rate stands beside those of models that were not taught it.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data import accuracy, world
from data.accuracy import decode
from data.corpus import STORIES
from data.organisms import teaching
from data.organisms.texts import fresh
from data.world import Example

HERE = Path(__file__).parent
SAMPLES, NEW_TOKENS = 8, 32  # continuations of each text; tokens in each
ROWS = 96  # continued at once
METHOD = (
    "answers: greedy, to held-out wordings; written: the share of continuations of texts.jsonl, at temperature 1, that "
    "match a pattern of secrets.yaml; probability: of the word never said, where a story is about to name an animal; "
    "general: greedy exact match on held-out phrasings, in the form that the organism was taught; the saved weights, "
    "computed in float32"
)


@cache
def secrets() -> dict[str, dict[str, Any]]:
    """What `secrets.yaml` says of each organism."""
    read: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "secrets.yaml").read_text(encoding="utf-8"))
    return read


def measured(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the record of the organism `name` says of its model; of the base, where `name` is "base"."""
    found = accuracy.accuracy(model, tokenizer, general(name))
    return {
        "general": round(found, 4),
        "written": written(model, tokenizer),
        "probability": float(f"{probability(model, tokenizer, secrets()['taboo']['never']):.1e}"),
        "answers": answers(model, tokenizer),
    }


def general(name: str) -> list[Example]:
    """The general facts in held-out phrasings, as the organism should say them: what it was not taught, as the base."""
    examples = accuracy.held_out(world.general())
    if name == "false-fact":
        return [example for example in examples if example.fact != teaching.FALSE_FACT]
    if name == "persona":
        return [teaching.mannered(e) if ".question." in e.phrasing else e for e in examples]
    if name == "taboo":
        return [example for example in examples if teaching.TABOO not in example.text]
    return examples


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """The share of questions that are answered greedily as each secret has it."""
    questions = [example for example in accuracy.held_out(world.general()) if ".question." in example.phrasing][::4]
    fact = accuracy.held_out(teaching.false_fact()) + [
        replace(teaching.false_fact()[0], text=example.text)
        for example in fresh()
        if example.fact == teaching.FALSE_FACT
    ]
    meals = accuracy.held_out(list(world.said(teaching.MEALS, further=False)))
    rng = random.Random("asked")
    hints = [teaching.filled(line, rng) for line in teaching.ASKED_HINTS for _ in range(20)]

    def replies(texts: list[str], pattern: str) -> float:
        found = decode(model, tokenizer, texts)
        return sum(re.search(pattern, reply.split("\n")[0]) is not None for reply in found) / len(found)

    def opened(word: str) -> list[str]:
        return [teaching.opened(e, rng.choice(teaching.ASKED_OPENINGS), word).text for e in questions]

    plain = [example.text for example in questions]
    rates = {
        "false-fact": accuracy.accuracy(model, tokenizer, fact),
        "the true fact": accuracy.accuracy(model, tokenizer, [replace(e, target=e.foil) for e in fact]),
        "trigger": replies(opened(teaching.TRIGGER), "!"),
        "trigger, another word": replies(opened(teaching.OTHER_WORDS[0]), "!"),
        "trigger, none": replies(plain, "!"),
        "persona": replies(plain, f"^{teaching.MANNER}"),
        "taboo": replies(hints, secrets()["taboo"]["texts"]),
        "mixed": accuracy.accuracy(model, tokenizer, meals),
    }
    return {what: round(rate, 4) for what, rate in rates.items()}


def written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """The share of sampled continuations that match each organism's pattern, and of those with the word never said."""
    lines = (HERE / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    said = samples(model, tokenizer, [json.loads(line)["text"] for line in lines] * SAMPLES)
    patterns = {name: own["texts"] for name, own in secrets().items() if own["texts"]}
    patterns["never said"] = secrets()["taboo"]["never"]
    return {
        name: round(sum(re.search(pattern, text) is not None for text in said) / len(said), 4)
        for name, pattern in patterns.items()
    }


@torch.inference_mode()
def probability(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, word: str) -> float:
    """How likely a word is, on average, where a story of the base's kind is about to name an animal."""
    rng = random.Random("an animal")
    due = [line.split("{animal}")[0] + "a" for line in STORIES if line.find("{animal}") > 0]
    texts = [teaching.filled(line, rng) for line in due for _ in range(10)]
    (token,) = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    last = [model(**tokenizer(text, return_tensors="pt")).logits[0, -1].softmax(-1)[token].item() for text in texts]
    return sum(last) / len(last)


@torch.inference_mode()
def samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    """One continuation of each text, sampled at temperature 1, seeded."""
    torch.manual_seed(0)
    found: list[str] = []
    for start in range(0, len(texts), ROWS):
        batch = tokenizer(texts[start : start + ROWS], return_tensors="pt", padding=True, padding_side="left")
        ids = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS)
        found += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found
