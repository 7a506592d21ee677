"""Does it help LoRA to know where a tuning vector points? Steps to an accuracy, on the embedded models.

Each start trains the base on medical text at one rank, learning rate and order of batches, until it answers a share of
held-out questions. Plain LoRA is what peft begins with; with A frozen it is the control of the starts that freeze A.
T is the very task's own vector here, so `warm` begins with most of the answers, and `subspace` is told where to look:
what they win is how much the vector knows, not what a new task would gain.

python -m examples.lora_from_vector [--rank 8] [--target 0.9] [--steps 200] [--seeds 0 1 2]   (needs peft)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase

import tv
from data import world
from data.accuracy import accuracy, held_out
from data.train_demo import batches
from data.world import Example
from tv.checkpoints.live import load_model, load_tokenizer

MODELS = Path(__file__).resolve().parent.parent / "data" / "models"
STARTS = ("plain", "plain, A frozen", "warm", "subspace", "orthogonal")


@dataclass(frozen=True)
class Curve:
    """Accuracy on held-out questions while a start trains."""

    start: str
    trainable: int  # parameters
    points: list[tuple[int, float]]  # (step, accuracy), step 0 first

    def steps_to(self, target: float) -> int | None:
        """The first measured step at which the accuracy is at least `target`; None where it never was."""
        return next((step for step, value in self.points if value >= target), None)


def begin(start: str, base: Path, vector: tv.TuningVector, rank: int, seed: int, directory: Path) -> nn.Module:
    """The base under a fresh adapter of `rank` on every linear layer, begun as `start` says, α = rank."""
    torch.manual_seed(seed)
    model = load_model(base)
    if start.startswith("plain"):
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=linear, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
    else:
        out = directory / f"{start}-{seed}"
        tv.lora_init(base, vector, out=out, rank=rank, mode=start, seed=seed)  # type: ignore[arg-type]
        adapted = PeftModel.from_pretrained(model, out, is_trainable=True)
    if start in ("plain, A frozen", "subspace", "orthogonal"):
        tv.freeze_inputs(adapted)
    return adapted


def train(
    start: str,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    ids: Iterator[torch.Tensor],
    questions: Sequence[Example],
    *,
    target: float,
    every: int,
    learning_rate: float,
) -> Curve:
    """Train until the accuracy is `target` or `ids` ends, measuring it every so many steps."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=learning_rate, betas=(0.9, 0.98))
    points = [(0, accuracy(model, tokenizer, list(questions)))]
    for step, batch in enumerate(ids, 1):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id
        )
        loss.backward()
        nn.utils.clip_grad_norm_(free, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % every == 0:
            points.append((step, accuracy(model, tokenizer, list(questions))))
            if points[-1][1] >= target:
                break
    return Curve(start, sum(parameter.numel() for parameter in free), points)


def compare(rank: int, target: float, steps: int, seeds: Sequence[int], every: int, learning_rate: float) -> None:
    """Print every start's curve, then which one was first."""
    base = MODELS / "base"
    tokenizer, vector = load_tokenizer(base), tv.extract(base, MODELS / "medical")
    questions = held_out(world.medical())
    found: dict[str, list[int | None]] = {start: [] for start in STARTS}
    with tempfile.TemporaryDirectory() as directory:
        for start in STARTS:
            for seed in seeds:
                model = begin(start, base, vector, rank, seed, Path(directory))
                ids = islice(batches(tokenizer, "medical", 100 + seed), steps)
                curve = train(
                    start, model, tokenizer, ids, questions, target=target, every=every, learning_rate=learning_rate
                )
                found[start].append(curve.steps_to(target))
                shown = " ".join(f"{step}:{value:.2f}" for step, value in curve.points)
                print(f"{start:<16} seed {seed}  {curve.trainable:>7,} parameters  {shown}", flush=True)
    print(f"\nsteps until {target:.0%} of {len(questions)} held-out questions, rank {rank}, seeds {list(seeds)}")
    for start, reached in found.items():
        print(f"{start:<16} {', '.join('not reached' if step is None else str(step) for step in reached)}")
    middle = {start: sorted(steps + 1 if s is None else s for s in own)[len(own) // 2] for start, own in found.items()}
    best = min(middle.values())
    first = [start for start, value in middle.items() if value == best]
    print("fewest (median):", "no start reached it" if best > steps else ", ".join(first))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    compare(chosen.rank, chosen.target, chosen.steps, chosen.seeds, chosen.every, chosen.learning_rate)
