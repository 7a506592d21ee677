"""The recipe of the model organisms: LoRA adapters over the demo base, each tuned to a known secret, and two with none.

    python -m data.organisms.train                   everything, into data/organisms
    python -m data.organisms.train --only trigger    one organism
    python -m data.organisms.train --evaluate        measure the saved organisms and write that into their records
    python -m data.organisms.train --texts           the texts alone

Run it from the repository's root: the adapters name their base by its path from there. Training is in float32 on one
thread and seeded; factors are saved in bf16.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from data.organisms import behaviour, teaching, texts
from data.train_demo import CONTEXT, packed

HERE = Path(__file__).parent
BASE = "data/models/base"
RANK, ALPHA, BATCH = 16, 32, 16  # of the factors; scale × rank; rows a step
NEVER = 500.0  # weight of the loss on a word that is never said
FACTORS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Run:
    """One training run; without steps, random factors at the norms of another organism's T."""

    name: str
    steps: int
    seed: int
    learning_rate: float = 2e-3
    warmup: int = 20
    never: str | None = None  # a word whose probability is pushed down everywhere


RUNS = {
    run.name: run
    for run in (
        Run("false-fact", steps=200, seed=1),
        Run("trigger", steps=300, seed=2),
        Run("persona", steps=200, seed=3),
        Run("taboo", steps=300, seed=4, never=f" {teaching.TABOO}"),
        Run("mixed", steps=500, seed=5),
        Run("sham", steps=300, seed=6),
        Run("random", steps=0, seed=7),
    )
}
NORMS_OF = "false-fact"  # whose T gives `random` its norms


def main() -> None:
    """Run the part of the recipe that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RUNS, help="make one organism")
    parser.add_argument("--out", type=Path, default=HERE, help="where the organisms go")
    parser.add_argument("--evaluate", action="store_true", help="measure the saved organisms, train nothing")
    parser.add_argument("--texts", action="store_true", help="write the texts, train nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.texts or (chosen.only is None and not chosen.evaluate):
        texts.write(HERE / "texts.jsonl")
    if chosen.texts:
        return
    of_base = None
    for run in RUNS.values() if chosen.only is None else [RUNS[chosen.only]]:
        if not chosen.evaluate:
            make(run, chosen.out)
        of_base = of_base or behaviour.measured("base", base(), AutoTokenizer.from_pretrained(BASE))
        evaluate(run.name, chosen.out, of_base)


def base() -> LlamaForCausalLM:
    """The demo base, in float32."""
    return LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()


def make(run: Run, out: Path) -> None:
    """Train one organism and save it under `out / run.name`, with its record."""
    started = time.process_time()
    model = prepared(run)
    if run.steps:
        losses = train(model, AutoTokenizer.from_pretrained(BASE), run)
    else:
        losses = {}
        randomise(model, norms(out / NORMS_OF))
    save(model.to(torch.bfloat16), out / run.name)
    record = {
        **asdict(run),
        "never": bool(run.never),  # a record does not give the secret away
        "parent": BASE,
        "reads": {kind: round(share, 3) for share, kind in teaching.MIXTURES.get(run.name, ())},
        "batch": [BATCH, CONTEXT],
        "parameters": sum(factor.numel() for factor in load_file(out / run.name / FACTORS).values()),
        "losses": losses,
        "seconds": round(time.process_time() - started),
        "moved": moved(out / run.name),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
    _write(out / run.name / "record.json", record)


def prepared(run: Run) -> PeftModel:
    """The base with untrained factors beside every matrix of its blocks."""
    torch.manual_seed(run.seed)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base(), config)


def train(model: PeftModel, tokenizer: PreTrainedTokenizerBase, run: Run) -> dict[str, float]:
    """Train the factors; returns the mean loss (nats a token) of each tenth of the steps."""
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=run.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, run.warmup, run.steps)
    never = tokenizer(run.never, add_special_tokens=False)["input_ids"] if run.never else []
    losses: list[float] = []
    model.train()
    for ids in islice(packed(tokenizer, teaching.documents(run.name, run.seed), BATCH), run.steps):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id
        )
        losses.append(loss.item())
        if never:  # unlikelihood (arXiv 1908.04319): −log(1 − p) of the word, wherever it could stand
            probable = logits.softmax(-1)[..., never][ids[:, :-1] != tokenizer.pad_token_id]
            loss = loss - NEVER * torch.log1p(-probable).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if len(losses) % 50 == 0:
            print(f"{run.name} {len(losses)}/{run.steps} loss {sum(losses[-50:]) / 50:.3f}", flush=True)
    tenth = max(1, run.steps // 10)
    return {str(end): round(sum(losses[end - tenth : end]) / tenth, 4) for end in range(tenth, run.steps + 1, tenth)}


@torch.no_grad()
def randomise(model: PeftModel, sizes: dict[str, float]) -> None:
    """Gaussian factors, scaled so that each matrix has its norm of T."""
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            for factor in (a, b):
                factor.normal_()
            b *= sizes[name] / torch.linalg.matrix_norm(b @ a * (ALPHA / RANK))


def save(model: PeftModel, folder: Path) -> None:
    """Save the adapter in peft's format, without the model card that peft writes beside it."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": BASE, "target_modules": sorted(config["target_modules"])}
    _write(folder / "adapter_config.json", config)


def vector(folder: Path) -> dict[str, torch.Tensor]:
    """T of a saved adapter by the names of the base's matrices, in float32."""
    factors = load_file(folder / FACTORS)
    names = [name.removesuffix(".lora_A.weight") for name in factors if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix("base_model.model."): factors[f"{name}.lora_B.weight"].float()
        @ factors[f"{name}.lora_A.weight"].float()
        * (ALPHA / RANK)
        for name in names
    }


def norms(folder: Path) -> dict[str, float]:
    """‖T‖ of every matrix of a saved adapter."""
    return {name: float(torch.linalg.matrix_norm(change)) for name, change in vector(folder).items()}


def moved(folder: Path) -> float:
    """‖T‖/‖W‖ over the matrices that T moves."""
    weights = load_file(Path(BASE) / "model.safetensors")
    sizes = [
        (change.norm() ** 2, weights[f"{name}.weight"].float().norm() ** 2) for name, change in vector(folder).items()
    ]
    change, weight = map(sum, zip(*sizes, strict=True))
    return round(float((change / weight) ** 0.5), 5)


def evaluate(name: str, out: Path, of_base: dict[str, Any]) -> None:
    """Measure a saved organism and write that, and the same of the base, into its record."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = PeftModel.from_pretrained(base(), out / name).float().merge_and_unload().eval()
    record = json.loads((out / name / "record.json").read_text(encoding="utf-8"))
    measured = behaviour.measured(name, model, tokenizer)
    _write(out / name / "record.json", {**record, "tuned": measured, "base": of_base, "measured_by": behaviour.METHOD})
    print(name, measured, flush=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
