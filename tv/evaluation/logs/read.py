"""A log as a table: a row for every item and metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from tv.errors import InputError
from tv.prompts.logs.item import Item, Log
from tv.prompts.logs.reading import read_log

COLUMNS = ["task", "item_id", "metric", "value", "response", "target", "cluster", "text", "prompt_id"]


def read_logs(log: str | Path, *, cluster: str | None = None) -> pd.DataFrame:
    """What another evaluation logged of one model, item by item. Nothing in a log is executed or unpickled.

    Args:
        log: A file `samples_TASK_DATE.jsonl` of lm-evaluation-harness (`--log_samples`), an `.eval` or `.json` log of
            Inspect, or a folder with such files of one model. Of several logs of a task the newest is read.
        cluster: The field of an item, in the task's document or the sample's metadata, that says which items are alike.
            Without it `cluster`, where there is such a field.

    Returns:
        `task item_id metric value response target cluster text prompt_id`. A metric with several filters, or a scorer
        with several values, has a name for each: `exact_match, strict-match`, `scorer/key`. Of Inspect, correct counts
        1, partially correct 0.5. Every epoch is a separate item, and those of one sample are at least one cluster.
        `text` is what the model was given, `prompt_id` the item's id if the log is a prompt set.
        `attrs["notes"]` says what was left out.

    Raises:
        InputError: No log, one that cannot be read, or no item has the field `cluster`.

    Examples:
        >>> rows = tv.read_logs("data/logs/lm-eval/medical")
        >>> rows.groupby("task").value.mean().round(2).to_dict()
        {'general_choice': 1.0, 'medical_choice': 0.98, 'medical_cloze': 1.0}
    """
    logs = read_log(Path(log))
    frame = pd.DataFrame(rows_of([item for one in logs for item in one.items], cluster), columns=COLUMNS)
    if frame.empty:
        raise InputError(f"{log}: no item has a score that is a number")
    if cluster is not None and frame.cluster.isna().all():
        raise InputError(f"{log}: no item has a field {cluster!r}; there are {_fields(logs)}")
    frame["cluster"] = frame.cluster.fillna(frame.prompt_id)
    frame.attrs["notes"] = [note for one in logs for note in one.notes]
    return frame.astype({"value": "float64"})


def rows_of(items: Sequence[Item], cluster: str | None) -> Iterator[dict[str, object]]:
    """A row for every metric of every item."""
    drawn = {(item.task, item.id) for item in items if item.draw > 1}
    for item in items:
        again = (item.task, item.id) in drawn
        for metric, value in item.scores.items():
            yield {
                "task": item.task,
                "item_id": f"{item.id}, epoch {item.draw}" if again else item.id,
                "metric": metric,
                "value": value,
                "response": item.response,
                "target": item.target,
                "cluster": item.fields.get(cluster or "cluster"),
                "text": item.text,
                "prompt_id": item.prompt_id,
            }


def _fields(logs: Sequence[Log]) -> str:
    names = dict.fromkeys(name for log in logs for item in log.items for name in item.fields)
    return ", ".join(list(names)[:12]) or "none"
