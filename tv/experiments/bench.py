"""A model at the points that tuning vectors reach from it, on every task: the building block of each experiment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from transformers import PreTrainedModel

from tv.arithmetic.variants import Mover, of_one_form
from tv.checkpoints.live import LiveSource, load_model, load_tokenizer
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.own_tokenizer import borrow_template, lenders, owned
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError
from tv.evaluation.ends import own_ends
from tv.evaluation.evaluate import conversation_of
from tv.evaluation.harness import COLUMNS, Harness, template_options
from tv.evaluation.tasks import Task, TaskSpec, load_tasks
from tv.experiments.cells import Cells, identity
from tv.runtime.compute import Compute


@dataclass(frozen=True)
class Settings:
    """How an experiment runs its tasks."""

    experiment: str  # its name, for progress messages
    tasks: Sequence[TaskSpec] | TaskSpec
    out: str | Path | None = None  # where finished cells and the results go; default: nowhere
    tokenizer: LiveSource | None = None  # the base's without it
    limit: int | None = None  # items of each task
    new_tokens: int | None = None
    chat: bool | Literal["tuned"] | Mapping[str, Any] = False  # as `tv.evaluate` takes it
    batch_size: int = 16
    draws: int = 2000  # resamples of items, or of clusters of them, for what has no formula
    seed: int = 0
    compute: Compute = Compute()
    loaded: list[Task] = field(default_factory=list)

    def load(self) -> list[Task]:
        """The tasks, loaded once. Raises InputError as `load_tasks` does."""
        if not self.loaded:
            self.loaded.extend(load_tasks(self.tasks, new_tokens=self.new_tokens))
        return self.loaded

    def cells(self) -> Cells:
        """Where finished cells are."""
        return Cells(Path(self.out) / "cells" if self.out is not None else None)


@dataclass(frozen=True)
class Point:
    """A variant by name: the model it starts from, moved by Σ λT."""

    name: str
    scales: Mapping[TuningVector, float] = field(default_factory=dict)


class Bench:
    """One model under the tasks of an experiment: loaded in float32 when a cell is missing, and moved in place."""

    def __init__(
        self, model: LiveSource, base: LiveSource, settings: Settings, cells: Cells, beside: Iterable[LiveSource] = ()
    ) -> None:
        """`base` is what the model was tuned from (or that model itself): its tokenizer is used.

        `beside` are those tuned from it whose answers are compared with these: the end-of-text tokens of all end them.
        """
        if isinstance(model, PreTrainedModel) and model.dtype != torch.float32:
            raise InputError(f"the live model is in {model.dtype}, too coarse for small steps of λ: call model.float()")
        settings.compute.require_float32("λ can be distinguished")
        self._source, self._base, self._settings, self._cells = model, base, settings, cells
        self._tasks = settings.load()
        self._tokenizer = load_tokenizer(settings.tokenizer if settings.tokenizer is not None else base)
        self._ends = set().union(*(own_ends(one, self._tokenizer, base) for one in (model, base, *beside)))
        self._chat, written = conversation_of(settings.chat), {}
        if self._chat is not None:
            sources = {str(getattr(one, "name_or_path", one)): one for one in (model, *beside)}
            own = {name: owned(one, base) for name, one in sources.items()}
            borrow_template(self._tokenizer, lenders(own, sources, base), self._chat.template is not None)
            written = {**template_options(self._chat, self._tokenizer), "system": self._chat.system}
        fingerprint = open_checkpoint(model, base=None if model is base else base).fingerprint()
        words = hashlib.sha256(str(sorted(self._tokenizer.get_vocab().items())).encode()).hexdigest()[:16]
        self._key = {
            "model": [fingerprint["structure"], fingerprint["content"]],
            "tokenizer": words,
            "limit": settings.limit,
            "chat": settings.chat if isinstance(settings.chat, bool) else written,
            "decoding": "greedy",
            "ends": sorted(self._ends),
            "columns": COLUMNS,
        }

    def items(
        self, points: Sequence[Point], *, method: str = "sum", tasks: Iterable[str] | None = None, **options: Any
    ) -> pd.DataFrame:
        """The items of every point on every task (or on those named), `variant` the point's name.

        Finished cells are read, not rerun. Raises InputError where a vector does not fit the model.
        """
        wanted = [task for task in self._tasks if tasks is None or task.name in set(tasks)]
        names = [point.name for point in points]
        if len(set(names)) < len(names):
            raise InputError("two points of one name")
        finished: dict[tuple[str, str], pd.DataFrame] = {}
        missing: dict[str, list[Task]] = {}
        keys = {}
        for point in points:
            for task in wanted:
                at = point.name, task.name
                keys[at] = self._cell(point, task, method, options)
                kept = self._cells.find(keys[at])
                if kept is not None:
                    finished[at] = kept
                else:
                    missing.setdefault(point.name, []).append(task)
        self._run([point for point in points if point.name in missing], missing, method, options, keys, finished)
        frames = [finished[point.name, task.name].assign(variant=point.name) for point in points for task in wanted]
        return pd.concat(frames, ignore_index=True)[["variant", *COLUMNS]]

    def _run(
        self,
        points: Sequence[Point],
        missing: Mapping[str, Sequence[Task]],
        method: str,
        options: Mapping[str, Any],
        keys: Mapping[tuple[str, str], Mapping[str, object]],
        finished: dict[tuple[str, str], pd.DataFrame],
    ) -> None:
        if not points:
            return
        vectors = list(dict.fromkeys(vector for point in points for vector in point.scales))
        model, moved = of_one_form(self._model, vectors)
        harness = self._harness(model)
        forms = dict(zip(vectors, moved, strict=True))
        with Mover(model, moved, method=method, seed=self._settings.seed, **options) as mover:
            for i, point in enumerate(points):
                mover.to({forms[vector]: scale for vector, scale in point.scales.items()})
                for task in missing[point.name]:
                    at = point.name, task.name
                    done = self._cells.find(keys[at])  # two points may share a cell: all with λ = 0 do
                    if done is None:
                        done = self._cells.keep(keys[at], harness.items(task, self._settings.limit))
                    finished[at] = done
                self._settings.compute.tell(self._settings.experiment, i + 1, len(points), point.name)

    def _cell(self, point: Point, task: Task, method: str, options: Mapping[str, float]) -> dict[str, object]:
        moves = sorted(
            (self._identity(vector), round(float(scale), 9)) for vector, scale in point.scales.items() if scale
        )
        how = {"method": method, "options": dict(options), "seed": self._settings.seed} if method != "sum" else {}
        return {**self._key, "task": [task.name, task.digest], "moves": moves, **(how if moves else {})}

    def _identity(self, vector: TuningVector) -> str:
        if vector not in self._identities:
            self._identities[vector] = identity(vector)
        return self._identities[vector]

    @cached_property
    def _identities(self) -> dict[TuningVector, str]:
        return {}

    @cached_property
    def _model(self) -> PreTrainedModel:
        base = None if self._source is self._base else self._base
        return load_model(self._source, base=base, device=self._settings.compute.device)

    def _harness(self, model: PreTrainedModel) -> Harness:
        settings = self._settings
        return Harness(model, self._tokenizer, batch_size=settings.batch_size, chat=self._chat, ends=self._ends)
