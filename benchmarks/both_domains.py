"""Can one model hold both domains? base + medical + math by every method and λ, on the embedded models.

    python -m benchmarks.both_domains [--fit] [--math math-beside-medical]

A grid of (λ_medical, λ_math) on 60 held-out questions a domain, for every method; the point whose worse domain is best
is measured on all of them. `--fit` asks what more scales could do: one λ a parameter and vector, 114 in all, fitted by
gradient on the labelled phrasings that training saw. Minutes for a method on one thread.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tv
from data import world
from data.accuracy import accuracy, held_out
from data.world import Example
from tv.checkpoints.live import load_model, load_tokenizer

MODELS = Path(__file__).resolve().parent.parent / "data" / "models"
SAMPLE, STEPS, BATCH = 60, 300, 32
GRID = [(a, b) for a in (0.6, 0.8, 1, 1.25, 1.5, 2, 2.5) for b in (0.6, 0.8, 1, 1.25, 1.5, 2)]
#: Method, its options, and what the grid is multiplied by: a mean over vectors needs more than a sum.
RUNS: tuple[tuple[str, dict[str, float], float], ...] = (
    ("sum", {}, 1),
    ("dare", {"density": 0.9}, 1),
    ("dare", {"density": 0.5}, 1),
    ("deflate", {"fraction": 0.1}, 1),
    ("deflate", {"fraction": 0.3}, 1),
    ("tsv-m", {}, 1),
    ("iso-c", {}, 1),
    ("wudi", {}, 1),
    ("ties", {"density": 0.2}, 1.5),
    ("ties", {"density": 0.5}, 1.5),
    ("ties", {"density": 1.0}, 1.5),
    ("model-stock", {}, 10),
    ("split-inside", {"fraction": 0.5}, 1),
    ("split-outside", {"fraction": 0.1}, 1),
    ("split-outside", {"fraction": 0.3}, 1),
)


class Questions:
    """Held-out questions of both domains, and a sample of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.all = held_out(world.medical()), held_out(world.math())[::5]
        draw = random.Random(0)
        self.sample = draw.sample(self.all[0], SAMPLE), draw.sample(self.all[1], SAMPLE)

    def scores(self, model: PreTrainedModel, of: tuple[list[Example], list[Example]]) -> tuple[float, float]:
        """(medical, math), shares answered right."""
        medical, math = (accuracy(model, self.tokenizer, questions) for questions in of)
        return medical, math


def main() -> None:
    """Print the best point of every method, and with --fit the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit one λ a parameter instead")
    parser.add_argument("--math", choices=("math", "math-beside-medical"), default="math", help="whose T is added")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, questions = load_model(MODELS / "base"), Questions(load_tokenizer(MODELS / "base"))
    vectors = [tv.extract(MODELS / "base", MODELS / name) for name in ("medical", chosen.math)]
    if chosen.fit:
        fit(model, vectors, questions)
        return
    print("method, options: best λ (medical, math), accuracy on all held-out questions (medical, math)")
    for method, options, factor in RUNS:
        with tv.Mover(model, vectors, method=method, **options) as mover:

            def worse(point: tuple[float, float], mover: tv.Mover = mover) -> float:
                mover.to(dict(zip(vectors, point, strict=True)))
                return min(questions.scores(model, questions.sample))

            best = max(((factor * a, factor * b) for a, b in GRID), key=worse)
            mover.to(dict(zip(vectors, best, strict=True)))
            medical, math = questions.scores(model, questions.all)
        print(f"{method} {options or ''}: ({best[0]:g}, {best[1]:g})  {medical:.2f}, {math:.2f}", flush=True)


def fit(model: PreTrainedModel, vectors: list[tv.TuningVector], questions: Questions) -> None:
    """Descend on one λ a parameter and vector; of every 30 steps the one with the best worse domain is kept."""
    shown = [[example for example in own if not example.held_out] for own in (world.medical(), world.math())]
    parameters = dict(model.named_parameters())
    start = {name: value.detach().clone() for name, value in parameters.items()}
    deltas = [{name: vector[name] for name in parameters} for vector in vectors]
    scales = torch.full((2, len(parameters)), 0.8, requires_grad=True)
    optimizer, draw = torch.optim.Adam([scales], lr=0.03), random.Random(0)

    @torch.no_grad()
    def move(to: torch.Tensor) -> None:
        for j, (name, value) in enumerate(parameters.items()):
            value.copy_(start[name] + sum(float(to[i, j]) * delta[name] for i, delta in enumerate(deltas)))

    best, kept = -1.0, scales.detach().clone()
    for step in range(STEPS + 1):
        move(scales)
        if step % 30 == 0:
            medical, math = questions.scores(model, questions.sample)
            print(f"step {step}: {medical:.2f}, {math:.2f} on {SAMPLE} questions each", flush=True)
            if min(medical, math) > best:
                best, kept = min(medical, math), scales.detach().clone()
        model.zero_grad()
        for own in shown:
            _loss(model, questions.tokenizer, draw.sample(own, BATCH)).backward()
        gradients = [[(value.grad * delta[name]).sum() for name, value in parameters.items()] for delta in deltas]
        scales.grad = torch.tensor(gradients)
        optimizer.step()
    move(kept)
    medical, math = questions.scores(model, questions.all)
    print(f"one λ a parameter, fitted on labels: {medical:.2f}, {math:.2f} on all held-out questions")


def _loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[Example]) -> torch.Tensor:
    """Mean −log p of the answers' tokens."""
    rows = [(tokenizer(example.text)["input_ids"], tokenizer(example.full)["input_ids"]) for example in examples]
    width = max(len(full) for _, full in rows)
    ids = torch.tensor([full + [tokenizer.pad_token_id] * (width - len(full)) for _, full in rows])
    labels = torch.full_like(ids, -100)
    for i, (text, full) in enumerate(rows):
        labels[i, len(text) : len(full)] = ids[i, len(text) : len(full)]
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


if __name__ == "__main__":
    main()
