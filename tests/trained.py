"""Short training runs on the demo base, by the recipe of the demo's `medical`: ten checkpoints in a few seconds."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from data import corpus
from data.train_demo import packed

BASE = "data/models/base"


def model_of(adapter: bool, *, dropout: float = 0.0) -> PreTrainedModel:
    """The demo base, to be trained whole or by a LoRA on every matrix of its blocks."""
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, attention_dropout=dropout)
    if not adapter:
        return model
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear")
    return get_peft_model(model, settings)


def train(
    model: PreTrainedModel,
    out: Path,
    *callbacks: TrainerCallback,
    steps: int = 20,
    rate: float = 2e-3,
    resume: str | None = None,
    **more: Any,
) -> Trainer:
    """Train on medical text with the Trainer, in batches of four."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    batches = islice(packed(tokenizer, corpus.documents("medical", 1), 4), steps)
    rows = [
        {"input_ids": row, "labels": row.masked_fill(row == tokenizer.pad_token_id, -100)} for b in batches for row in b
    ]
    settings: dict[str, Any] = {"save_strategy": "no", "logging_steps": 5, "report_to": [], "disable_tqdm": True}
    settings |= {"use_cpu": True, "learning_rate": rate, "max_steps": steps, "per_device_train_batch_size": 4, **more}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(out), **settings),
        train_dataset=rows,
        callbacks=list(callbacks),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer
