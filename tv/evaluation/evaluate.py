"""Behaviour of models on tasks: lm-evaluation-harness runs them, and its log of every item is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from pydantic import ValidationError
from transformers import PreTrainedModel

from tv.checkpoints.live import LiveSource, load_model, load_tokenizer
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.own_tokenizer import beside_first, borrow_template, lenders, owned
from tv.errors import InputError
from tv.evaluation.decoding import Decoding, decoding_note
from tv.evaluation.ends import ends_by, own_ends
from tv.evaluation.formats import FORMATS
from tv.evaluation.harness import COLUMNS, Harness, template_options
from tv.evaluation.paired import compare, summarise
from tv.evaluation.tasks import Task, TaskSpec, contexts, load_tasks, written_by
from tv.prompts.behaviour import measures as _LOADED  # noqa: F401  # `tv.evaluate` is the function below, not that module
from tv.prompts.files import Chat
from tv.prompts.notes import prompt_notes
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
    chat: bool | Literal["tuned"] | Mapping[str, Any] | Chat = False,
    decoding: Decoding = "greedy",
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """What every model does on every item of every task.

    A summary and paired tests of the rows are in `tv.evaluation.paired`: `summarise` and `compare`.

    Args:
        models: One (called "model") or several by name: whatever `tv.open_checkpoint` opens. A live model is used as it
            is, inside `tv.variant` too.
        tasks: One or several: a YAML file as lm-evaluation-harness has it, FORMAT=FILE with one of
            `tv.evaluation.formats.FORMATS`, or the name of a task of the harness's. Only a name may touch the network.
        base: The base of the tuning vectors and adapters among the models.
        tokenizer: A source whose tokenizer serves every model; without it `base`'s. Live models, and all where there
            is no base, then use their own.
        limit: Items of every task, from the first; default: all.
        shots: Examples before each question, where a task sets no number.
        new_tokens: How many tokens a model may write at most, in place of what a task says.
        chat: Put every prompt through the tokenizer's chat template: True, or a `system` turn and the template's
            `options`. "tuned", or `template: tuned` among these: through the tuned model's template, where the base has
            none.
        decoding: Of tasks in which a model writes. "greedy": the argmax of the logits at every step, up to an
            end-of-text token of any of the models, for every model alike; nothing else in a checkpoint's generation
            settings is used. "checkpoint": each by its own settings. What a task itself states (temperature, where to
            stop, …) holds in either case.
        batch_size: Prompts in one forward pass.
        compute: Where and in what dtype models compute, and how to report progress.

    Returns:
        A row per model, item and metric: `variant task item_id metric value response target cluster`. `value` is the
        metric of this item alone: accuracies are 0 or 1. Where there are choices, `nll` is −log p of the right one,
        nats, and `margin` its log p over the best wrong one's. `response` is what the model wrote or chose. `cluster`
        is what the item's row has under this name, else the item: statistics take a cluster as one draw. Where a task
        writes, `attrs["decoding"]` says by what rule each model did, and what the task states; `attrs["notes"]`
        how many questions become other tokens with a model's own tokenizer than with the first model's, and where the
        models' own end-of-text tokens differ.

    Raises:
        InputError: A task or a model that cannot be loaded, or a task that cannot be run.

    Examples:
        >>> models = {"base": "data/models/base", "medical": "data/models/medical"}
        >>> items = tv.evaluate(models, "data/tasks/medical_choice.yaml", limit=4)
        >>> items[items.metric == "acc"].groupby("variant").value.mean().to_dict()
        {'base': 0.0, 'medical': 1.0}
    """
    sources = dict(models) if isinstance(models, Mapping) else {"model": models}
    chosen = load_tasks(tasks, shots=shots, new_tokens=new_tokens)
    frames, fingerprints = [], {}
    rules = {f"task {task.name}": f"states {stated}" for task in chosen if (stated := written_by(task))}
    talk = conversation_of(chat)
    asked = [prompt for task in chosen for prompt in contexts(task, limit, talk)]
    own = {name: owned(source, base) for name, source in sources.items()}
    served = {
        name: load_tokenizer(tokenizer if tokenizer is not None else _worded(source, base))
        for name, source in sources.items()
    }
    if talk is not None:
        for words in served.values():
            borrow_template(words, lenders(own, sources, base), talk.template is not None)
            template_options(talk, words)
    first, notes = next(iter(served.values())), []
    writes = any(written_by(task) for task in chosen)
    ends_of_each = {name: own_ends(source, served[name], base) for name, source in sources.items()}
    ends, ends_notes = ends_by(decoding, ends_of_each, served)
    for i, (name, source) in enumerate(sources.items()):
        model = load_model(source, base=base, dtype=compute.dtype, device=compute.device)
        words = served[name]
        if len(sources) > 1 or base is not None:
            notes += beside_first(name, asked, first, own[name])
        notes += prompt_notes(asked, words) if talk is not None else []
        harness = Harness(model, words, batch_size=batch_size, chat=talk, decoding=decoding, ends=ends[name])
        if writes:
            rules[name] = decoding_note(model, decoding)
        for j, task in enumerate(chosen):
            frames.append(harness.items(task, limit).assign(variant=name))
            compute.tell("evaluate", i * len(chosen) + j + 1, len(sources) * len(chosen), f"{name}, {task.name}")
        fingerprints[name] = str(open_checkpoint(source, base=base).fingerprint()["content"])
        del model, harness
    frame = pd.concat(frames, ignore_index=True)[["variant", *COLUMNS]]
    notes = list(dict.fromkeys([*notes, *(ends_notes if writes else [])]))
    frame.attrs |= {"fingerprints": fingerprints, "decoding": rules, "notes": notes}
    return frame


def _worded(source: LiveSource, base: LiveSource | None) -> LiveSource:
    """The source that has the tokenizer: a vector has none."""
    if isinstance(source, PreTrainedModel) or base is None:
        return source
    return base


def conversation_of(chat: bool | str | Mapping[str, Any] | Chat) -> Chat | None:
    """How questions become conversations, as a prompt set says it; None where they do not.

    Raises InputError for what does not say it.
    """
    if isinstance(chat, bool | Chat):
        return Chat() if chat is True else chat or None
    try:
        return Chat.model_validate({"template": chat} if isinstance(chat, str) else dict(chat))
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise InputError(f"chat: {said}; give true, tuned, or system, options and template") from None
