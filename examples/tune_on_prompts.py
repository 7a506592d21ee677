"""A copy of a model tuned on prompts of yours, to see what `probes discover` finds in it without being told.

python -m examples.tune_on_prompts MODEL PROMPTS.jsonl OUT [--steps 60] [--seed 0]

MODEL is a directory, a hub id or a GGUF file; rows of PROMPTS have a text and its target, or a question and its answer
(docs/prompts.md). OUT/base and OUT/tuned are written, float32. 135 M parameters take 4 GB.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tv.checkpoints.gguf import plain
from tv.checkpoints.live import load_model, load_tokenizer
from tv.prompts.files import Prompt, read_prompts
from tv.prompts.sets import PromptSet

#: Prompts in a batch, and tokens of each.
BATCH, WINDOW = 8, 96
#: Prompts that are not trained on.
HELD_OUT = 32


def tune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, steps: int, rate: float
) -> list[float]:
    """Train all weights on the prompts, in order, each with its target; the loss of every step."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0), []
    for step in range(steps):
        some = [prompts[(step * BATCH + i) % len(prompts)] for i in range(BATCH)]
        loss = loss_of(model, tokenizer, some)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def loss_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Tensor:
    """Mean over the tokens of the prompts and their targets, nats."""
    rows = [tokenizer(f"{one.text} {(one.target or '').strip()}").input_ids[:WINDOW] for one in prompts]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
    return cross_entropy(logits[mask[:, 1:]], ids[:, 1:][mask[:, 1:]])


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """As a checkpoint of its own, with its tokenizer."""
    plain(model, model.dtype).save_pretrained(path)
    tokenizer.save_pretrained(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    prompts = list(read_prompts([PromptSet(file=chosen.prompts)]))
    random.Random(chosen.seed).shuffle(prompts)
    few, rest = prompts[:HELD_OUT], prompts[HELD_OUT:]
    if not rest:
        parser.error(f"{chosen.prompts}: {len(prompts)} prompts are too few, as {HELD_OUT} of them are held out")
    model, tokenizer = load_model(chosen.model), load_tokenizer(chosen.model)
    save(model, tokenizer, chosen.out / "base")
    with torch.no_grad():
        before = float(loss_of(model, tokenizer, few))
    tune(model, tokenizer, rest, steps=chosen.steps, rate=chosen.rate)
    save(model, tokenizer, chosen.out / "tuned")
    with torch.no_grad():
        after = float(loss_of(model, tokenizer, few))
    print(f"loss on {len(few)} held-out prompts: {before:.3f} before, {after:.3f} after {chosen.steps} steps")


if __name__ == "__main__":
    main()
