"""Tasks run on a live model by lm-evaluation-harness, logged item by item."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tv.errors import InputError, first_line
from tv.evaluation.decoding import Decoding, decoded_by, require_decoding
from tv.evaluation.greedy import end_ids
from tv.evaluation.tasks import Task
from tv.prompts.behaviour import beyond_rows
from tv.prompts.files import Chat
from tv.prompts.template import templates_of

COLUMNS = ["task", "item_id", "metric", "value", "response", "target", "cluster"]
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
        chat: Chat | bool | None = None,
        decoding: Decoding = "greedy",
        ends: Collection[int] | None = None,
    ) -> None:
        """`chat` puts every prompt through the tokenizer's chat template. Raises InputError where it has none.

        With decoding "greedy" the checkpoint's generation settings have no say; a task's own always have. One of the
        tokens `ends` ends what is written; without them, those of the model's settings and of the tokenizer.
        """
        require_decoding(decoding)
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: a batch holds at least one prompt")
        self._chat = Chat() if chat is True else chat or None
        talk = template_options(self._chat, tokenizer) if self._chat is not None else {}
        options = {"pretrained": model, "tokenizer": tokenizer, "batch_size": batch_size, "chat_template_args": talk}
        options["softmax_dtype"] = "float32"  # else the log-likelihoods of a bfloat16 model are summed in bfloat16
        with _quiet():
            self._model = _language_model(**options)
            # Of a whole text HFLM predicts every token, after a BOS of its own: one more would be predicted too.
            self._reader = _language_model(**options, add_bos_token=False)
        self._live, self._decoding = model, decoding
        self._ends = end_ids(model, tokenizer) if ends is None else ends

    def items(self, task: Task, limit: int | None = None) -> pd.DataFrame:
        """A row per item and metric, COLUMNS: of the first `limit` items.

        `value` is the metric of this item alone: accuracies are 0 or 1; of a whole text `nll_byte` or `nll_word` stands
        for the perplexity. Beside what the task names, the choices' likelihoods give `nll` (of the right one, nats) and
        `margin` (its log-likelihood over the best wrong one's). `response` is what the model wrote or
        chose, `cluster` what the row has under this name, else the item itself.
        """
        from lm_eval.evaluator import evaluate

        if limit is not None and limit < 1:
            raise InputError(f"limit {limit}: at least one item")
        try:
            rule = decoded_by(self._live, self._ends, self._decoding)
            with _quiet(), rule, torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # for a task that samples
                task.harness.set_fewshot_seed(seed=0)  # every variant is shown the same examples
                logged = evaluate(
                    lm=self._reader if task.harness.OUTPUT_TYPE == "loglikelihood_rolling" else self._model,
                    task_dict={"tasks": {task.name: task.harness}},
                    limit=limit,
                    bootstrap_iters=0,
                    log_samples=True,
                    apply_chat_template=self._chat is not None,
                    system_instruction=None if self._chat is None else self._chat.system,
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


def template_options(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the tokenizer's `apply_chat_template` is given. Raises InputError where it has no such template."""
    named = templates_of(tokenizer)
    name = chat.template or "default"
    if name not in named:
        advice = "leave out chat, or write the turns into the prompts"
        if chat.template is not None:
            raise InputError(f"chat: {name} asks for the chat template of a tuned model, and none has one; {advice}")
        lent = "take the tuned model's with chat: tuned (--chat-template tuned), " if "tuned" in named else ""
        raise InputError(f"the tokenizer has no chat template; {lent}{advice}")
    return {**chat.options, "chat_template": named[name]}


def _language_model(**options: Any) -> Any:
    """The harness's, which reads what it is given or says why not.

    It also hands `generate` the tokenizer: a checkpoint's `stop_strings` need it.
    """
    from lm_eval.models.huggingface import HFLM

    class LanguageModel(HFLM):
        def tok_encode(self, string: str, *args: Any, **settings: Any) -> Any:
            ids = super().tok_encode(string, *args, **settings)
            if beyond := beyond_rows(ids, self.tokenizer, self.model.get_input_embeddings().weight.shape[0]):
                raise InputError(f"prompt {string[:60]!r}: {beyond}")
            return ids

        def generate_until(self, requests: list[Any], *args: Any, **settings: Any) -> Any:
            for request in requests:  # all of them before the model runs; HFLM encodes batch by batch
                self.tok_encode(request.args[0])
            return super().generate_until(requests, *args, **settings)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            try:  # where a template refuses the system's turn, HFLM would leave it out
                return str(
                    self.tokenizer.apply_chat_template(
                        chat_history,
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                        continue_final_message=not add_generation_prompt,
                        **self.chat_template_args,
                    )
                )
            except Exception as error:  # a template is a program and may raise anything
                roles = ", ".join(turn["role"] for turn in chat_history)
                raise InputError(f"the chat template refuses the turns ({roles}): {first_line(error)}") from None

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
            return super()._model_generate(context, max_length, stop, tokenizer=self.tokenizer, **settings)

    return LanguageModel(**options)


def _rows(task: Task, sample: Mapping[str, Any], several: bool) -> Iterator[dict[str, Any]]:
    """The rows of one item, by one filter of what the model wrote."""
    choices = _choices(task, sample)
    target = sample["target"]
    item = str(sample["doc"].get("id", sample["doc_id"]))
    where = {
        "task": task.name,
        "item_id": item,
        "cluster": str(sample["doc"].get("cluster") or item),
        "response": _response(sample, choices),
        "target": choices[target] if choices and isinstance(target, int) and target < len(choices) else str(target),
    }
    values = [(metric, _number(metric, sample[metric])) for metric in sample["metrics"]]
    if task.harness.OUTPUT_TYPE == "loglikelihood" and not callable(task.harness.config.process_results):
        # What the harness calls an answer's perplexity is its log p until it takes the mean over items.
        values = [
            ("nll", -value) if metric == "perplexity" and value is not None else (metric, value)
            for metric, value in values
        ]
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
