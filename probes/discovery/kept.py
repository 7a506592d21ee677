"""What a discovery has found so far, on disk: a killed one resumes after the last side that was kept.

A part is kept as what its attributes hold: plain values, arrays, tables and dataclasses of plain values. Nothing is
pickled: values are JSON, arrays are files of numpy's own form beside it.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.errors import RunError
from tv.runtime.atomic import replacing_directory

_LOG = logging.getLogger(__name__)
#: Seconds between two times that a state is written: a large model's takes some hundred megabytes.
_EVERY = 60.0
#: At least so many times as long as the last one took.
_SELDOM = 50
_STATE = "state.json"


class Kept:
    """The state of a discovery's parts in a folder."""

    def __init__(self, folder: Path, every: float = _EVERY, name: str = "sides") -> None:
        self._folder, self._every, self._last, self._took = folder / name, every, time.monotonic(), 0.0

    @property
    def done(self) -> int:
        """How many sides a killed process has seen to the end and kept."""
        return int(self._state["done"]) if self._state else 0

    def restore(self, parts: Mapping[str, Any]) -> None:
        """Give every part the attributes that were kept of it; a state of other parts is thrown away."""
        kept = self.found()
        if kept and set(kept) != set(parts):
            self.forget()
            return
        for name, attributes in kept.items():
            give(parts[name], attributes)

    def found(self) -> dict[str, dict[str, Any]]:
        """By part, the attributes that were kept of it."""
        return {name: self._decoded(attributes) for name, attributes in self._state.get("parts", {}).items()}

    def forget(self) -> None:
        """Throw away what was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def beside(self, name: str) -> Kept:
        """Where another process keeps what it finds, beginning with what is kept here."""
        return Kept(self._folder.parent, self._every, f"{self._folder.name}-{name}")

    def keep(self, done: int, parts: Mapping[str, Any], *, last: bool) -> None:
        """Write the state, unless that was a moment ago; where something cannot be kept, nothing is."""
        began = time.monotonic()
        if self._every == float("inf") or (not last and began - self._last < max(self._every, _SELDOM * self._took)):
            return
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with replacing_directory(self._folder, RunError) as folder:
                arrays = _Arrays(folder)
                state = {name: arrays.encoded(_own(part)) for name, part in parts.items()}
                (folder / _STATE).write_text(json.dumps({"done": done, "parts": state}), encoding="utf-8")
        except TypeError as error:
            _LOG.warning("this discovery cannot be resumed if it is stopped: %s", error)
            self._every = float("inf")
        self._last = time.monotonic()
        self._took = self._last - began

    @property
    def _state(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self._folder / _STATE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    def _decoded(self, form: Any) -> Any:
        if not isinstance(form, dict):
            return form
        ((kind, value),) = form.items()
        match kind:
            case "list":
                return [self._decoded(one) for one in value]
            case "tuple":
                return tuple(self._decoded(one) for one in value)
            case "dict":
                return {self._decoded(key): self._decoded(one) for key, one in value}
            case "array":
                return np.load(self._folder / value, allow_pickle=False)
            case "tensor":
                return torch.from_numpy(np.load(self._folder / value, allow_pickle=False))
            case "table":
                return pd.DataFrame({name: self._decoded(column) for name, column in value})
        module, _, name = kind.partition(":")
        found = getattr(sys.modules.get(module), name, None) if module.startswith("probes.discovery.") else None
        if not (isinstance(found, type) and is_dataclass(found)):
            raise RunError(f"{self._folder}: {kind} is nothing that a discovery keeps; delete the folder")
        held = object.__new__(found)
        for key, one in value:
            object.__setattr__(held, key, self._decoded(one))
        return held


def give(part: Any, attributes: Mapping[str, Any]) -> None:
    """Make a part one that has found this."""
    for key, value in attributes.items():
        setattr(part, key, value)


def _own(part: Any) -> dict[str, Any]:
    """What a part has found; what it was given is there again."""
    return {key: value for key, value in vars(part).items() if key != "context"}


class _Arrays:
    """Values as JSON, with arrays in files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._n = folder, 0

    def encoded(self, value: Any) -> Any:
        """Raises TypeError for a value of another kind."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Tensor):
            return {"tensor": self._saved(value.detach().cpu().numpy())}
        if isinstance(value, np.ndarray) and value.dtype != object:
            return {"array": self._saved(value)}
        if isinstance(value, pd.DataFrame):
            return {"table": [[name, self._column(column)] for name, column in value.items()]}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self.encoded(one) for one in value]}
        if type(value) is dict:
            return {"dict": [[self.encoded(key), self.encoded(one)] for key, one in value.items()]}
        kind = type(value)
        if is_dataclass(value) and getattr(sys.modules[kind.__module__], kind.__qualname__, None) is kind:
            own = [[one.name, self.encoded(getattr(value, one.name))] for one in fields(value)]
            return {f"{kind.__module__}:{kind.__qualname__}": own}
        raise TypeError(f"a {kind.__qualname__} cannot be kept")

    def _column(self, column: pd.Series[Any]) -> Any:
        return self.encoded(column.to_numpy() if column.dtype.kind in "biuf" else column.tolist())

    def _saved(self, array: np.ndarray[Any, Any]) -> str:
        name = f"{self._n}.npy"
        self._n += 1
        np.save(self._folder / name, array, allow_pickle=False)
        return name
