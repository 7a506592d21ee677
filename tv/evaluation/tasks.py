"""Tasks: a YAML file over local JSONL, a user's file in a known benchmark's format, or one of the harness's by name.

The first two never touch the network, and skip the harness's index, which takes many seconds to build.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from tv.errors import InputError, choices, first_line
from tv.evaluation.formats import FORMATS, Row, read_rows
from tv.prompts.conversation import read_conversation
from tv.prompts.files import Chat, Prompt

TaskSpec: TypeAlias = str | Path


@dataclass(frozen=True)
class Task:
    """One task, ready to be run on any model."""

    name: str
    harness: Any  # lm_eval's Task
    metrics: Mapping[str, bool]  # name → whether higher is better; experiments use the first
    digest: str  # of its settings and every row; it identifies the task


def load_tasks(
    specs: TaskSpec | Sequence[TaskSpec], *, shots: int | None = None, new_tokens: int | None = None
) -> list[Task]:
    """The tasks of `specs`: groups resolved, each task once.

    `shots` examples go before each question where a task sets no number. `new_tokens` is how many a model may write
    at most, in place of what a task says.

    A spec is a YAML file as lm-evaluation-harness has it (its data files lie relative to it), FORMAT=FILE with one of
    `tv.evaluation.formats.FORMATS`, or the name of a harness's task. Raises InputError for what cannot be loaded.
    """
    specs = [specs] if isinstance(specs, str | Path) else list(specs)
    if not specs:
        raise InputError("no task; give a YAML file, FORMAT=FILE or the name of a task of lm-evaluation-harness")
    loaded: dict[str, Task] = {}
    for spec in specs:
        for task in _load(spec):
            if task.config.num_fewshot is None:
                if shots and not _has_examples(task):
                    raise InputError(
                        f"task {task.task_name}: has no examples but its own items; give it a fewshot_split"
                    )
                task.set_config(key="num_fewshot", value=shots or 0)
            if new_tokens is not None and task.OUTPUT_TYPE == "generate_until":
                task.set_config(key="generation_kwargs", value={"max_gen_toks": new_tokens}, update=True)
            if task.task_name in loaded:
                raise InputError(f"task {task.task_name!r} is given twice; name each once")
            loaded[task.task_name] = _task(task)
    return list(loaded.values())


def written_by(task: Task) -> str:
    """What a task in which a model writes states about how: its generation settings. Empty for any other task."""
    if task.harness.OUTPUT_TYPE != "generate_until":
        return ""
    stated = task.harness.config.generation_kwargs or {}
    return ", ".join(f"{name} {value!r}" for name, value in sorted(stated.items()))


def contexts(task: Task, limit: int | None = None, chat: Chat | None = None) -> list[Prompt]:
    """What a task shows of each of its first `limit` items, without examples; with `chat` as a conversation."""
    texts = (task.harness.doc_to_text(doc) for doc in islice(task.harness.eval_docs, limit))
    return [
        Prompt(f"{task.name}-{i}", task.name, task.name, text, chat=_talk(text, chat, f"{task.name}-{i}"))
        for i, text in enumerate(texts)
        if isinstance(text, str) and text.strip()
    ]


def _talk(text: str, chat: Chat | None, place: str) -> str | None:
    return None if chat is None else str(read_conversation({"text": text}, chat, place)[0])


def _has_examples(task: Any) -> bool:
    """Whether it says where examples come from; otherwise the harness would show an item its own answer."""
    stated = task.config.fewshot_config
    return bool(
        getattr(task.fewshot_cfg, "split", None)
        or (stated is not None and getattr(task.fewshot_cfg, "samples", None))
        or task.has_training_docs()
        or (task.has_validation_docs() and task.has_test_docs())
    )


def _load(spec: TaskSpec) -> list[Any]:
    """The harness's tasks of one spec."""
    manager = _import_manager()
    text = str(spec)
    kind, equals, file = text.partition("=")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        if text.endswith((".yaml", ".yml")):
            meant: Any = _local(Path(text))
            index = manager(include_defaults=False)
        elif equals:
            meant, index = _formatted(kind, Path(file)), manager(include_defaults=False)
        else:
            meant, index = text, manager()
        return list(index.load([meant])["tasks"].values())
    except InputError:
        raise
    except Exception as error:  # a task is a program and may raise anything
        raise InputError(f"task {text}: {_why(error, text)}") from error


def _why(error: Exception, text: str) -> str:
    if isinstance(error, KeyError) and "not a registered task" in str(error):
        return "lm-evaluation-harness has no task of this name; give a local one as its YAML file"
    if (odd := re.search(r"unexpected keyword argument '(\w+)'", str(error))) is not None:
        from lm_eval.api.task import TaskConfig

        return f"unknown key {odd[1]!r}{choices(odd[1], (field.name for field in fields(TaskConfig)))}"
    return f"cannot be loaded: {first_line(error)}"


def _import_manager() -> Callable[..., Any]:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError("lm-evaluation-harness is not installed; install tuning-probes[eval]") from None
    return TaskManager


def _local(path: Path) -> dict[str, Any]:
    """A YAML file's config; JSONL beside it is read here, so that nothing is copied to a cache."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        raise InputError(f"{path}: no such file; a task is a YAML file as lm-evaluation-harness has it")
    config = load_yaml(path)
    if not isinstance(config.get("task"), str):
        raise InputError(f"{path}: has no `task`, the name of what it describes")
    if config.get("dataset_path") != "json":
        return config
    files = (config.pop("dataset_kwargs", None) or {}).get("data_files")
    if not files:
        raise InputError(f"{path}: `dataset_path: json` needs `dataset_kwargs: {{data_files: {{test: FILE}}}}`")
    splits = files if isinstance(files, dict) else {config.get("test_split", "test"): files}
    rows = {split: _read_all(path.parent, names) for split, names in splits.items()}
    config.pop("dataset_path")
    return config | {"custom_dataset": _dataset(rows)}


def _read_all(directory: Path, names: str | Sequence[str]) -> list[Row]:
    return [row for name in ([names] if isinstance(names, str) else names) for row in read_jsonl(directory / name)]


def _formatted(kind: str, file: Path) -> dict[str, Any]:
    if kind not in FORMATS:
        raise InputError(f"no task format {kind!r}{choices(kind, FORMATS)}")
    rows = read_rows(kind, read_jsonl(file), str(file))
    return {"task": kind, "test_split": "test", "custom_dataset": _dataset({"test": rows}), **FORMATS[kind].config}


def read_jsonl(path: Path) -> list[Row]:
    """A mapping a line. Raises InputError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise InputError(f"{path}, line {number}: no JSON: {error}") from None
        if row is not None and not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: a row is a JSON object")
        rows += [row] if row is not None else []
    if not rows:
        raise InputError(f"{path}: has no rows")
    return rows


def _dataset(splits: Mapping[str, Sequence[Row]]) -> Callable[..., Any]:
    def custom_dataset(**_: object) -> Any:
        from datasets import Dataset

        return {split: Dataset.from_list(list(rows)) for split, rows in splits.items()}

    return custom_dataset


def _task(task: Any) -> Task:
    """Its digest is over the settings, with the source of functions in them, and over the rows."""
    settings = {name: _told(value) for name, value in vars(task.config).items() if name not in _PLACES}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for row in task.eval_docs:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    higher = {str(name): bool(better) for name, better in task.higher_is_better().items()}
    return Task(task.task_name, task, higher, digest.hexdigest()[:16])


#: Settings that say where a task and its data are, not what the task is.
_PLACES = ("custom_dataset", "dataset_path", "dataset_kwargs", "metadata")


def _told(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _told(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_told(inner) for inner in value]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__name__)
    if hasattr(value, "__dict__"):
        return _told(vars(value))
    return value
