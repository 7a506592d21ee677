"""How often the gate is wrong: rules at their very bounds, null pairs, and random adapters through `probes check`.

    python -m benchmarks.gate_nulls bounds|pairs|adapters|planted --count 200

bounds: simulated prompts whose true mean is the bound of each of 8 rules; any false fail, any false pass.
pairs: seeded random T of the medical model's norms, scaled down, on the embedded base. The prompts of each domain are
taken as the population, so that the truth is known; 48 are drawn with replacement. Once the bounds are 0.1 nats and the
like, as people write them (a sham should pass), once they are the truth itself (the hardest null).
adapters: random LoRA adapters of rank 8 through `probes check`.
planted: the medical, math, law and code models against base by the same rules, so that a regression is caught.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import probes
import tv
from probes.gating.estimates import average, moved_share
from probes.gating.judging import Bound, judge
from tv.prompts.behaviour import batched, behaviour, gather

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "data" / "models" / "base"
DOMAINS = ("general", "medical", "math")
#: Metric, and the change of it that matters.
RULES = (("target_nll", 0.1), ("logit_diff", 0.3), ("exact_match", 0.4))


def bounds(draws: int) -> None:
    rng = np.random.default_rng(0)
    fails = passes = 0
    for _ in range(draws):
        numbers, limits = [], []
        for n in (12, 24, 48):
            for noise in (rng.normal(size=n), rng.exponential(size=n) - 1):
                numbers.append(average(0.05 + 0.2 * noise, None))
                limits.append(Bound(at_most=0.05))
        for _ in range(2):
            turned = [(rng.random(40) < share).astype(float) for share in (0.8, 0.9)]
            numbers.append(moved_share(*turned, None))
            limits.append(Bound(at_most=0.1))
        verdicts = {judged.verdict for judged in judge(numbers, limits)}
        fails += "fail" in verdicts
        passes += "pass" in verdicts
    print(f"8 rules at their bounds, {draws} files: any fail {fails / draws:.3f}, any pass {passes / draws:.3f}")


def _values(model: object, prepared: dict[str, list]) -> dict[tuple[str, str], np.ndarray]:
    return {
        (domain, metric): values
        for domain, batches in prepared.items()
        for metric, values in behaviour(model, batches).items()  # type: ignore[arg-type]
    }


def _judged(before: dict, after: dict, clusters: dict, rng: np.random.Generator, truth: bool) -> set[str]:
    """The verdicts of nine rules on clusters of prompts drawn with replacement; at the truth where asked."""
    numbers, limits = [], []
    for domain in DOMAINS:
        names = np.unique(clusters[domain])
        taken = rng.choice(len(names), len(names))
        rows = [np.flatnonzero(clusters[domain] == names[i]) for i in taken]
        index = np.concatenate(rows)
        labels = [f"{k}" for k, row in enumerate(rows) for _ in row]
        for metric, matters in RULES:
            sign = 1 if metric == "target_nll" else -1
            old, new = sign * before[domain, metric], sign * after[domain, metric]
            limit = float((new - old).mean()) if truth else matters
            if metric == "exact_match":
                numbers.append(moved_share(-new[index], -old[index], labels))  # how many fewer
            else:
                numbers.append(average((new - old)[index], labels))
            limits.append(Bound(at_most=limit, floor=0.0 if truth else 1e-5))
    return {judged.verdict for judged in judge(numbers, limits)}


def pairs(count: int, planted: bool) -> None:
    torch.set_num_threads(1)
    from tv.checkpoints.live import load_model, load_tokenizer

    model, tokenizer = load_model(str(BASE)), load_tokenizer(str(BASE))
    prepared, clusters = {}, {}
    for domain in DOMAINS:
        prompts = gather(ROOT / "data" / "prompts" / f"{domain}.jsonl")
        prepared[domain] = batched(prompts, model, tokenizer, 64)
        clusters[domain] = np.array([one.cluster or one.id for one in prompts])
    before = _values(model, prepared)
    if planted:
        for name in ("medical", "math", "law", "code"):
            vector = tv.extract(BASE, ROOT / "data" / "models" / name)
            with tv.variant(model, {vector: 1.0}):
                after = _values(model, prepared)
            caught = [_judged(before, after, clusters, np.random.default_rng(seed), False) for seed in range(50)]
            print(f"{name}: the gate fails in {np.mean(['fail' in verdicts for verdicts in caught]):.2f} of 50 samples")
        return
    vector = tv.extract(BASE, ROOT / "data" / "models" / "medical")
    counts = {"any fail": 0, "all pass": 0, "any fail at the truth": 0, "any pass at the truth": 0}
    for seed in range(count):
        rng = np.random.default_rng(seed)
        with tv.variant(model, {tv.control(vector, "random", seed): 0.05}):
            after = _values(model, prepared)
        sham, at_truth = (_judged(before, after, clusters, rng, truth) for truth in (False, True))
        counts["any fail"] += "fail" in sham
        counts["all pass"] += sham == {"pass"}
        counts["any fail at the truth"] += "fail" in at_truth
        counts["any pass at the truth"] += "pass" in at_truth
    print(f"{count} null pairs, 9 rules each: " + ", ".join(f"{name} {n / count:.3f}" for name, n in counts.items()))


def random_adapter(directory: Path, seed: int, rank: int = 8, size: float = 0.02) -> Path:
    """A LoRA adapter of the embedded base with random factors."""
    generator = torch.Generator().manual_seed(seed)
    tensors, shapes = {}, _shapes("q", "v")
    for layer in range(6):
        for name, (rows, columns) in shapes.items():
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}_proj"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * columns**-0.5
            tensors[f"{key}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * size
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "v_proj"]}
    text = json.dumps({**config, "base_model_name_or_path": str(BASE), "task_type": "CAUSAL_LM"})
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")
    return directory


def _shapes(*names: str) -> dict[str, tuple[int, int]]:
    vector = tv.extract(BASE, ROOT / "data" / "models" / "medical")
    return {name: vector.shapes[f"model.layers.0.self_attn.{name}_proj.weight"] for name in names}  # type: ignore[misc]


def adapters(count: int) -> None:
    torch.set_num_threads(1)
    standings: list[str] = []
    for seed in range(count):
        with tempfile.TemporaryDirectory() as directory:
            standings.append(probes.check(BASE, random_adapter(Path(directory), seed)).standing)
    told = sum(standing != "like random" for standing in standings)
    print(f"{count} random adapters: {told} told from random T ({told / count:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["bounds", "pairs", "adapters", "planted"])
    parser.add_argument("--count", type=int, default=200)
    given = parser.parse_args()
    if given.part == "bounds":
        bounds(given.count)
    elif given.part == "adapters":
        adapters(given.count)
    else:
        pairs(given.count, given.part == "planted")


if __name__ == "__main__":
    main()
