"""Tasks run on a live model by lm-evaluation-harness, logged item by item."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tv.errors import InputError, first_line
from tv.evaluation.decoding import Decoding, decoded_by, require_decoding
from tv.evaluation.tasks import Task

COLUMNS = ["task", "item_id", "metric", "value", "response", "target"]
#: Metrics of whole texts that the harness keeps as (log p, size): name there → name here and the unit's size in nats.
_ROLLING = {
    "word_perplexity": ("nll_word", 1.0),
    "byte_perplexity": ("nll_byte", 1.0),
    "bits_per_byte": ("bits_per_byte", math.log(2)),
}


class Harness:
    """A live model under lm-evaluation-harness. The weights are read again for every task: the model may move."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 16,
        chat: bool = False,
        decoding: Decoding = "greedy",
    ) -> None:
        """`chat` puts every prompt through the tokenizer's chat template. Raises InputError where it has none.

        With decoding "greedy" the checkpoint's generation settings have no say; a task's own always have.
        """
        require_decoding(decoding)
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: a batch holds at least one prompt")
        if chat and not tokenizer.chat_template:
            raise InputError("the tokenizer has no chat template; leave out chat, or write the turns into the prompts")
        with _quiet():
            self._model = _language_model(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            # Of a whole text HFLM predicts every token, after a BOS of its own: one more would be predicted too.
            self._reader = _language_model(
                pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False
            )
        self._chat, self._decoding = chat, decoding
        self._live, self._tokenizer = model, tokenizer

    def items(self, task: Task, limit: int | None = None) -> pd.DataFrame:
        """A row per item and metric, COLUMNS: of the first `limit` items.

        `value` is the metric of this item alone: accuracies are 0 or 1; of a whole text `nll_byte` or `nll_word` stands
        for the perplexity. Beside what the task names, the choices' likelihoods give `nll` (of the right one, nats) and
        `margin` (its log-likelihood over the best wrong one's). `response` is what the model wrote or chose.
        """
        from lm_eval.evaluator import evaluate

        if limit is not None and limit < 1:
            raise InputError(f"limit {limit}: at least one item")
        try:
            rule = decoded_by(self._live, self._tokenizer, self._decoding)
            with _quiet(), rule, torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # for a task that samples
                task.harness.set_fewshot_seed(seed=0)  # every variant is shown the same examples
                logged = evaluate(
                    lm=self._reader if task.harness.OUTPUT_TYPE == "loglikelihood_rolling" else self._model,
                    task_dict={"tasks": {task.name: task.harness}},
                    limit=limit,
                    bootstrap_iters=0,
                    log_samples=True,
                    apply_chat_template=self._chat,
                )
        except InputError:
            raise
        except (ValueError, AssertionError, TypeError, KeyError, RuntimeError) as error:
            raise InputError(f"task {task.name}: cannot be run on this model: {first_line(error)}") from error
        samples = logged["samples"][task.name]
        several = len({sample["filter"] for sample in samples}) > 1
        rows = [row for sample in samples for row in _rows(task, sample, several)]
        if not rows:
            raise InputError(f"task {task.name}: none of its metrics is a number an item: {', '.join(task.metrics)}")
        return pd.DataFrame(rows, columns=COLUMNS).astype({"value": "float64"})


def _language_model(**options: Any) -> Any:
    """The harness's, which also hands `generate` the tokenizer: a checkpoint's `stop_strings` need it."""
    from lm_eval.models.huggingface import HFLM

    class LanguageModel(HFLM):
        def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
            return super()._model_generate(context, max_length, stop, tokenizer=self.tokenizer, **settings)

    return LanguageModel(**options)


def _rows(task: Task, sample: Mapping[str, Any], several: bool) -> Iterator[dict[str, Any]]:
    """The rows of one item, by one filter of what the model wrote."""
    choices = _choices(task, sample)
    target = sample["target"]
    where = {
        "task": task.name,
        "item_id": str(sample["doc"].get("id", sample["doc_id"])),
        "response": _response(sample, choices),
        "target": choices[target] if choices and isinstance(target, int) and target < len(choices) else str(target),
    }
    values = [(metric, _number(metric, sample[metric])) for metric in sample["metrics"]]
    if choices and isinstance(target, int):
        values += _likelihoods(sample, target, len(choices))
    for metric, value in values:
        if value is not None:
            label = _ROLLING.get(metric, (metric, 1.0))[0]
            yield where | {"metric": f"{label}, {sample['filter']}" if several else label, "value": value}


def _number(metric: str, value: Any) -> float | None:
    """The metric of one item, or None where it has no value for a single item."""
    if metric in _ROLLING and isinstance(value, Sequence):
        return -value[0] / value[1] / _ROLLING[metric][1]
    if isinstance(value, list) and value and all(isinstance(part, bool | int | float) for part in value):
        return float(sum(value)) / len(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _choices(task: Task, sample: Mapping[str, Any]) -> list[str]:
    if task.harness.OUTPUT_TYPE != "multiple_choice":
        return []
    return [str(choice) for choice in task.harness.doc_to_choice(sample["doc"])]


def _likelihoods(sample: Mapping[str, Any], target: int, n: int) -> list[tuple[str, float | None]]:
    logs = [float(response[0][0]) for response in sample["resps"][:n]]
    wrong = [log for i, log in enumerate(logs) if i != target]
    if not 0 <= target < n or not wrong:
        return []
    return [("nll", -logs[target]), ("margin", logs[target] - max(wrong))]


def _response(sample: Mapping[str, Any], choices: Sequence[str]) -> str | None:
    """What the model wrote, or its likeliest choice; None for a text that it only read."""
    first = sample["resps"][0][0]
    if isinstance(first, str):
        return first
    if not choices:
        return None
    logs = [float(response[0][0]) for response in sample["resps"][: len(choices)]]
    return choices[logs.index(max(logs))]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the harness's bars and notes, which it writes to stderr for every task of every variant."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
