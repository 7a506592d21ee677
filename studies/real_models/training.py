"""One fine-tune: a fixed number of tokens, in float32, with the loss on held-out texts before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from studies.real_models.texts import Text, domain, in_order
from tv.arithmetic.lora import freeze_inputs
from tv.checkpoints.live import load_model, load_tokenizer
from tv.errors import CheckpointError
from tv.runtime.atomic import replacing_directory

#: Tokens of a step: one window, over the ends of texts, as pretraining packs them.
WINDOW = 256
#: Peak learning rates of AdamW, reached after a tenth of the steps and then falling to 0 in a line.
RATES = {"full": 5e-5, "lora": 5e-4}
#: Rank of a LoRA on every linear layer; its scale is alpha / r = 2.
RANK = 16


@dataclass(frozen=True)
class Training:
    """One fine-tune.

    Args:
        model: a name of `models.SOURCES`.
        domain: a name of `texts.FILES`.
        method: `full` or `lora`.
        seed: of the order of the texts and of a LoRA's first factors.
        steps: of 256 tokens each.
        start: the training that it starts from; the pretrained model if empty.
        adapter: a name for the LoRA to start from, whose A stays frozen; a random one, of which both train, if empty.
        checkpoints: how many to keep on the way, evenly spread, the last one included.
        label: a word that tells it from another one of the same kind.
    """

    model: str
    domain: str
    method: str
    seed: int
    steps: int
    start: str = ""
    adapter: str = ""
    checkpoints: int = 0
    label: str = ""

    @property
    def name(self) -> str:
        """The folder of its result."""
        rest = [part for part in (f"from-{self.start}" * bool(self.start), self.adapter, self.label) if part]
        return "-".join([self.model, self.domain, self.method, str(self.seed), *rest])


def train(
    training: Training, start: Path, texts: Path, out: Path, *, held_out: int, adapter: Path | None = None
) -> None:
    """Fine-tune the checkpoint `start` and write `out`: the model or adapter, `steps.csv` and `held_out.csv`.

    Checkpoints on the way are written to `out/step-N`. The same seed gives the same weights on the same machine.
    """
    torch.manual_seed(training.seed)
    model, tokenizer = load_model(start), load_tokenizer(start)
    of_domain = domain(training.domain, texts)
    few = of_domain.held_out[:held_out]
    before = losses(model, tokenizer, few)
    if training.method == "lora":
        model = _with_lora(model, adapter)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATES[training.method], weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, training.steps))
    kept = {training.steps * (i + 1) // training.checkpoints for i in range(training.checkpoints)} - {training.steps}
    steps = []
    with replacing_directory(out, CheckpointError) as folder:
        windows = _windows(in_order(of_domain.train, training.seed), tokenizer)
        for step in range(1, training.steps + 1):
            ids = next(windows)
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            steps.append({"step": step, "loss": loss.item(), "gradient_norm": norm.item()})
            if step in kept:
                model.save_pretrained(folder / f"step-{step}")
        after = losses(model, tokenizer, few)
        pd.DataFrame(steps).to_csv(folder / "steps.csv", index=False)
        before.assign(after=after["nll"]).rename(columns={"nll": "before"}).to_csv(folder / "held_out.csv", index=False)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@torch.no_grad()
def losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> pd.DataFrame:
    """What the answers of `texts` cost a model: a row each, `nll` in nats a token over `tokens`."""
    rows = []
    for one in texts:
        given, ids = len(tokenizer(one.text).input_ids), torch.tensor([tokenizer(one.text + one.target).input_ids])
        logits = model(input_ids=ids, use_cache=False).logits[0, given - 1 : -1].float()
        nll = cross_entropy(logits, ids[0, given:])
        rows.append({"id": one.id, "cluster": one.cluster, "tokens": ids.shape[1] - given, "nll": nll.item()})
    return pd.DataFrame(rows)


def _windows(texts: Sequence[Text], tokenizer: PreTrainedTokenizerBase) -> Iterator[Tensor]:
    """Windows of `WINDOW` tokens, without end: after the last text comes the first one again."""
    ids: list[int] = []
    while True:
        for one in texts:
            ids += [*tokenizer(one.text + one.target).input_ids, tokenizer.eos_token_id]
            while len(ids) >= WINDOW:
                yield torch.tensor([ids[:WINDOW]])
                ids = ids[WINDOW:]


def _share(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step, from 0."""
    warm = math.ceil(steps / 10)
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


def _with_lora(model: PreTrainedModel, adapter: Path | None) -> PreTrainedModel:
    from peft import LoraConfig, PeftModel, get_peft_model

    if adapter:
        started = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        freeze_inputs(started)
        return started
    settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, settings)
