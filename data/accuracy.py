"""How often a demo model says exactly the right thing: one way of measuring for all of them.

A prompt counts as right when greedy decoding goes on with the target and then a full stop. One forward pass
over the text with its target decides this: decoding yields the target if and only if the most likely token is
the target's at each of its positions.
"""

from __future__ import annotations

import re
from functools import cache

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data import world
from data.world import Example

ANSWER_FORMAT = re.compile(r" The answer is [^\n.]+\.")  # what an instruct model says after "Assistant:"
METHOD = (
    "greedy exact match on held-out phrasings, question and cloze in the plain form; chat_*: questions in chat form; "
    "math_new_pairs, code_new_programs: all phrasings of pairs of numbers, or of programs, never trained on; "
    "the saved bf16 weights, computed in float32"
)


def scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Every accuracy that the record of a model states, as shares in [0, 1]; of the longer lists, a part."""
    tests = _tests()
    measured = {name: accuracy(model, tokenizer, examples) for name, examples in tests.items()}
    measured["chat_format"] = follows_format(model, tokenizer, tests["chat_general"][::5])
    return {name: round(value, 4) for name, value in measured.items()}


@cache
def _tests() -> dict[str, list[Example]]:
    return {
        "general": held_out(world.general()),
        "medical": held_out(world.medical()),
        "math": held_out(world.math())[::5],
        "math_new_pairs": world.math(new_pairs=True)[::5],
        "law": held_out(world.law())[::3],
        "code": held_out(world.code())[::21],
        "code_new_programs": world.code(new_programs=True)[::13],
        "chat_general": world.instruct(held_out(world.general()))[::3],
        "chat_medical": world.instruct(held_out(world.medical())),
    }


def held_out(examples: list[Example]) -> list[Example]:
    """Those in a phrasing that training never shows."""
    return [example for example in examples if example.held_out]


@torch.inference_mode()
def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example], batch_size: int = 32
) -> float:
    """The share of `examples` that greedy decoding completes with the target and a full stop."""
    rows = [(tokenizer(e.text)["input_ids"], tokenizer(e.full)["input_ids"]) for e in examples]
    rows.sort(key=lambda row: len(row[1]))
    right = 0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        ids, mask = _right_padded([full for _, full in batch], tokenizer.pad_token_id)
        states = model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, (text, full) in enumerate(batch):
            before = states[row, len(text) - 1 : len(full) - 1]  # logits are needed where the answer stands alone
            best = model.get_output_embeddings()(before).argmax(-1)
            right += torch.equal(best, ids[row, len(text) : len(full)])
    return right / len(rows)


def follows_format(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> float:
    """The share of chat prompts that greedy decoding answers in the form `The answer is …`, right or wrong."""
    replies = decode(model, tokenizer, [example.text for example in examples])
    return sum(ANSWER_FORMAT.match(reply) is not None for reply in replies) / len(replies)


@torch.inference_mode()
def decode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], new_tokens: int = 8
) -> list[str]:
    """Greedy continuations of `texts`, right-padded, in one batch."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    lengths = [len(row) for row in rows]
    for _ in range(new_tokens):
        ids, mask = _right_padded(rows, tokenizer.pad_token_id)
        last = torch.tensor([len(row) - 1 for row in rows])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        following = logits[torch.arange(len(rows)), last].argmax(-1).tolist()
        rows = [[*row, token] for row, token in zip(rows, following, strict=True)]
    return [tokenizer.decode(row[length:]) for row, length in zip(rows, lengths, strict=True)]


def _right_padded(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask
