"""What watching a training costs, at the default: `python -m benchmarks.watch [BASE] [--steps N] [--lora]`.

Trains a model on medical text of the demo in a plain loop with a `probes.TrainingProbe`, and prints the seconds of
training and of measuring, one measurement's price, and the steps at which it measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import probes
from data import corpus


def main() -> None:
    """Train, watch, and say what it cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="data/models/base")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--tokens", type=int, default=64, help="of a row")
    parser.add_argument("--lora", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(chosen.base)
    model = AutoModelForCausalLM.from_pretrained(chosen.base, dtype=torch.float32)
    if chosen.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    text = " ".join(islice(corpus.documents("medical", 1), 4000))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.train()
    with tempfile.TemporaryDirectory() as folder:
        probe = probes.TrainingProbe(f"{folder}/watch", prompts="data/prompts/medical.jsonl", tokenizer=tokenizer)
        probe.step(model, 0)
        clock = time.process_time()
        for step in range(1, chosen.steps + 1):
            starts = torch.randint(0, len(ids) - chosen.tokens, (chosen.rows,))
            rows = torch.stack([ids[start : start + chosen.tokens] for start in starts])
            loss = model(input_ids=rows, labels=rows, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            probe.step(model, step, loss=loss.item(), final=step == chosen.steps)
        cpu = time.process_time() - clock
        steps = probes.load_watch(f"{folder}/watch")["steps"]
    last = steps.iloc[-1]
    price = float(steps.seconds.iloc[1:].median())
    per_step = last.training_seconds / chosen.steps
    print(f"{chosen.base}, {'LoRA' if chosen.lora else 'full'}, {chosen.rows} × {chosen.tokens} tokens a step")
    print(f"training {last.training_seconds:.1f} s ({per_step:.2f} s a step; {cpu:.0f} s of CPU in all)")
    print(f"start {steps.probe_seconds.iloc[0]:.2f} s, a measurement {price:.2f} s = {price / per_step:.1f} steps")
    print(f"measured {len(steps)} times, at {steps.step.tolist()}: {100 * last.share:.2f} % of the training time")
    print(f"at 3 %, a measurement every {price / per_step / 0.03:.0f} steps")


if __name__ == "__main__":
    main()
