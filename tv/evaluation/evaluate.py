"""Behaviour of models on tasks: lm-evaluation-harness runs them, and what it logs of every item is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from transformers import PreTrainedModel

from tv.checkpoints.live import LiveSource, load_model, load_tokenizer
from tv.checkpoints.opening import open_checkpoint
from tv.evaluation.formats import FORMATS
from tv.evaluation.harness import COLUMNS, Harness
from tv.evaluation.paired import compare, summarise
from tv.evaluation.tasks import Task, TaskSpec, load_tasks
from tv.prompts.behaviour import measures as _LOADED  # noqa: F401  # `tv.evaluate` is the function below, not that module
from tv.runtime.compute import Compute

__all__ = [
    "COLUMNS",
    "FORMATS",
    "Harness",
    "Task",
    "TaskSpec",
    "compare",
    "evaluate",
    "load_tasks",
    "summarise",
]


def evaluate(
    models: LiveSource | Mapping[str, LiveSource],
    tasks: TaskSpec | Sequence[TaskSpec],
    *,
    base: LiveSource | None = None,
    tokenizer: LiveSource | None = None,
    limit: int | None = None,
    shots: int | None = None,
    new_tokens: int | None = None,
    chat: bool = False,
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """What every model does on every item of every task: a row an item and metric.

    Columns `variant task item_id metric value response target`; see `Harness.items` for the metrics and `summarise` and
    `compare` for what becomes of them. `models` is one (called "model") or several by name; a live one is used as it
    stands, inside `tv.variant` too. `tasks` are YAML files, FORMAT=FILE or names of the harness's, see `load_tasks`;
    only a name may touch the network. `base` is what a vector or an adapter among the models lies over. Prompts go
    through `tokenizer`'s, without it each model's own. Raises InputError for a task or a model that cannot be had.
    """
    sources = dict(models) if isinstance(models, Mapping) else {"model": models}
    chosen = load_tasks(tasks, shots=shots, new_tokens=new_tokens)
    frames, fingerprints = [], {}
    for i, (name, source) in enumerate(sources.items()):
        model = load_model(source, base=base, dtype=compute.dtype, device=compute.device)
        words = load_tokenizer(tokenizer if tokenizer is not None else _worded(source, base))
        harness = Harness(model, words, batch_size=batch_size, chat=chat)
        for j, task in enumerate(chosen):
            frames.append(harness.items(task, limit).assign(variant=name))
            compute.tell("evaluate", i * len(chosen) + j + 1, len(sources) * len(chosen), f"{name}, {task.name}")
        fingerprints[name] = str(open_checkpoint(source, base=base).fingerprint()["content"])
        del model, harness
    frame = pd.concat(frames, ignore_index=True)[["variant", *COLUMNS]]
    frame.attrs["fingerprints"] = fingerprints
    return frame


def _worded(source: LiveSource, base: LiveSource | None) -> LiveSource:
    """Where the tokenizer lies: a vector has none of its own."""
    if isinstance(source, PreTrainedModel) or base is None:
        return source
    return base
