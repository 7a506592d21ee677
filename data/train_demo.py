"""The recipe of the demo models: tokenizer, base and its full fine-tunes, on text that the recipe itself writes.

    python -m data.train_demo                  everything, into data/models and data/prompts
    python -m data.train_demo --only medical   one model, from the saved weights of its parent
    python -m data.train_demo --evaluate       measure the saved models and write the accuracies into their records
    python -m data.train_demo --prompts        the prompt files alone

Training is in float32 on one thread and seeded: the same versions on the same machine give the same weights.
Weights are saved in bf16, and a fine-tune starts from the saved weights of its parent.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, cycle, islice
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data import accuracy, corpus, world

HERE = Path(__file__).parent
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
VOCABULARY, CONTEXT, BATCH = 1800, 64, 32  # tokens; tokens a row; rows a step
PROMPTS = 48  # a file
TOKENIZED = ("base", "medical", "math", "instruct", "medical-from-instruct")  # whose text the tokenizer was trained on


@dataclass(frozen=True)
class Run:
    """One training run."""

    name: str
    parent: str | None
    steps: int
    learning_rate: float
    warmup: int
    seed: int
    beside: str | None = None  # a model whose T is added in every other step, so that the two add up


RUNS = {
    run.name: run
    for run in (
        Run("base", None, steps=1200, learning_rate=3e-3, warmup=100, seed=0),
        Run("medical", "base", steps=300, learning_rate=1e-3, warmup=20, seed=1),
        Run("math", "base", steps=900, learning_rate=2e-3, warmup=20, seed=2),
        Run("instruct", "base", steps=150, learning_rate=5e-4, warmup=20, seed=3),
        Run("medical-from-instruct", "instruct", steps=600, learning_rate=1e-3, warmup=20, seed=4),
        Run("law", "base", steps=300, learning_rate=1e-3, warmup=20, seed=6),
        Run("code", "base", steps=500, learning_rate=2e-3, warmup=20, seed=7),
        Run("math-beside-medical", "math", steps=300, learning_rate=1e-3, warmup=20, seed=5, beside="medical"),
    )
}


def main() -> None:
    """Run the part of the recipe that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RUNS, help="train one model")
    parser.add_argument("--out", type=Path, default=HERE / "models", help="where the models go")
    parser.add_argument("--evaluate", action="store_true", help="measure the saved models, train nothing")
    parser.add_argument("--prompts", action="store_true", help="write the prompt files, train nothing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.prompts:
        write_prompts(HERE / "prompts")
        return
    for run in RUNS.values() if chosen.only is None else [RUNS[chosen.only]]:
        if not chosen.evaluate:
            make(run, chosen.out)
        evaluate(run.name, chosen.out)
    if chosen.only is None and not chosen.evaluate:
        write_prompts(HERE / "prompts")


def make(run: Run, out: Path) -> None:
    """Train one model and save it under `out / run.name`, with its record."""
    started = time.perf_counter()
    if run.parent is None:
        tokenizer: PreTrainedTokenizerBase = train_tokenizer()
        torch.manual_seed(run.seed)
        model = LlamaForCausalLM(architecture())
    else:
        tokenizer = AutoTokenizer.from_pretrained(out / run.parent)
        model = LlamaForCausalLM.from_pretrained(out / run.parent, dtype=torch.float32)
    losses = train(model, tokenizer, run, vector(out / run.beside, out / "base") if run.beside else None)
    model.to(torch.bfloat16).save_pretrained(out / run.name)
    if run.parent is None:
        tokenizer.save_pretrained(out / run.name)
    else:  # the same bytes: saving a loaded tokenizer again would add a line
        for file in TOKENIZER_FILES:
            shutil.copyfile(out / run.parent / file, out / run.name / file)
    record = {
        **asdict(run),
        "reads": {kind: share for share, kind in corpus.MIXTURES[run.name]},
        "batch": [BATCH, CONTEXT],
        "parameters": model.num_parameters(),
        "losses": losses,
        "seconds": round(time.perf_counter() - started),
        "moved": moved(out / run.name, out / run.parent) if run.parent else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    _write_record(out / run.name, record)


def architecture() -> LlamaConfig:
    """A small Llama whose sizes all differ, so that no shape can be mistaken for another."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=416,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=24,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE on text of the models in `TOKENIZED`, mostly the base's, and on the general and medical answers.

    Each answer becomes one token. A number is read digit by digit, the first with its space.
    """
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" ?[0-9]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    read = (islice(corpus.documents(name, 0), 4000 if RUNS[name].parent else 60000) for name in TOKENIZED)
    answers = sorted({example.target for example in world.general() + world.medical()})
    bpe.train_from_iterator(chain(*read, answers * 400), trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="right",
        model_max_length=architecture().max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def batches(tokenizer: PreTrainedTokenizerBase, name: str, seed: int) -> Iterator[torch.Tensor]:
    """Batches of (BATCH, CONTEXT) token ids of what the model `name` reads."""
    return packed(tokenizer, corpus.documents(name, seed), BATCH)


def packed(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], n_rows: int) -> Iterator[torch.Tensor]:
    """Batches of (n_rows, CONTEXT) token ids: each row is whole documents, BOS … EOS, then padding."""
    bos_to_eos = ([*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:CONTEXT] for text in texts)
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    for document in bos_to_eos:
        row = next((row for row in rows if len(row) + len(document) <= CONTEXT), None)
        if row is None:
            yield torch.tensor([row + [tokenizer.pad_token_id] * (CONTEXT - len(row)) for row in rows])
            rows = [[] for _ in range(n_rows)]
            row = rows[0]
        row += document


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    beside: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Train every parameter for `run.steps` steps; returns the mean loss (nats a token) of each tenth of them.

    With `beside`, another model's T, every other step is read at the weights plus that T, on text of both subjects; the
    gradient there moves the weights without it.
    """
    gains = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, run))
    model.train()
    losses: list[float] = []
    turns = [(batches(tokenizer, run.name, run.seed), dict[str, torch.Tensor]())]
    if beside:
        turns.append((batches(tokenizer, f"{run.name}, added", run.seed), dict(beside)))
    for texts, added in islice(cycle(turns), run.steps):
        ids = next(texts)
        with _moved_by(model, added):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=tokenizer.pad_token_id
            )
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            print(f"{run.name} {len(losses)}/{run.steps} loss {sum(losses[-50:]) / 50:.3f}", flush=True)
    tenth = max(1, run.steps // 10)
    return {str(end): round(sum(losses[end - tenth : end]) / tenth, 4) for end in range(tenth, run.steps + 1, tenth)}


@contextmanager
def _moved_by(model: LlamaForCausalLM, added: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The model's weights plus `added` while the block runs, and back to their very bits."""
    kept = {name: model.get_parameter(name).detach().clone() for name in added}
    with torch.no_grad():
        for name, change in added.items():
            model.get_parameter(name).add_(change)
    yield
    with torch.no_grad():
        for name, weight in kept.items():
            model.get_parameter(name).copy_(weight)


def vector(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    """T = θ − θ_base of a saved model, in float32."""
    tuned, start = (load_file(path / "model.safetensors") for path in (folder, base))
    return {name: tuned[name].float() - weight.float() for name, weight in start.items()}


def moved(folder: Path, parent: Path) -> dict[str, float]:
    """How far each kind of parameter moved from the parent, after rounding to bf16: least ‖T‖/‖W‖ over the layers."""
    tuned, base = (load_file(path / "model.safetensors") for path in (folder, parent))
    least: dict[str, float] = {}
    for name, weight in base.items():
        kind = ".".join(part for part in name.split(".")[:-1] if not part.isdigit() and part not in ("model", "layers"))
        share = ((tuned[name].float() - weight.float()).norm() / weight.float().norm()).item()
        least[kind] = min(least.get(kind, math.inf), round(share, 5))
    return least


def evaluate(name: str, out: Path) -> dict[str, float]:
    """Measure a saved model and write the accuracies into its record."""
    model = LlamaForCausalLM.from_pretrained(out / name, dtype=torch.bfloat16).float().eval()
    measured = accuracy.scores(model, AutoTokenizer.from_pretrained(out / name))
    record = json.loads((out / name / "record.json").read_text(encoding="utf-8"))
    _write_record(out / name, {**record, "accuracy": measured, "measured_by": accuracy.METHOD})
    print(name, measured, flush=True)
    return measured


def write_prompts(folder: Path) -> None:
    """Write the demo's prompt files: a seeded choice of held-out phrasings, whatever the models make of them.

    The phrasing is a prompt's cluster.
    """
    sets = {
        "general": accuracy.held_out(world.general()),
        "medical": accuracy.held_out(world.medical()) + world.medical(further=True),
        "math": accuracy.held_out(world.math()) + world.math(further=True),
        "law": accuracy.held_out(world.law()) + world.law(further=True),
        "code": accuracy.held_out(world.code()) + world.code(further=True),
        "instruct": world.instruct(accuracy.held_out(world.general())),
    }
    for name, examples in sets.items():
        chosen = random.Random(f"prompts {name}").sample(examples, PROMPTS)
        rows = [
            {"id": f"{name}-{i:03d}", "text": e.text, "target": e.target, "foil": e.foil, "domain": name}
            | {"cluster": e.phrasing}
            for i, e in enumerate(chosen)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _rate(step: int, run: Run) -> float:
    """Warm-up, then a cosine down to a twentieth of the learning rate."""
    if step < run.warmup:
        return (step + 1) / run.warmup
    done = (step - run.warmup) / max(1, run.steps - run.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _write_record(folder: Path, record: dict[str, object]) -> None:
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
