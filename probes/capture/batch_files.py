"""The batches of a shard on disk, until the shard is whole: what a killed run need not compute again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from probes.errors import RunError
from probes.measures.gates import NeuronCounts
from probes.store.journal import BATCHES
from tv.runtime.atomic import replacing

Columns: TypeAlias = dict[str, NDArray[Any]]
#: A table, its layer and its site.
Key: TypeAlias = tuple[str, int | None, str]
#: How often neurons fired, by layer, expert and domain.
Counts: TypeAlias = dict[tuple[int, int, str], NeuronCounts]


@dataclass(frozen=True)
class _Batch:
    """One batch: its arrays follow one another in a file, each as `numpy.save` writes it."""

    path: Path
    prompts: int
    names: dict[str, list[str]]
    parts: dict[Key, list[dict[str, int | list[Any]]]]  # by column: where its array begins, or its texts themselves
    counts: dict[tuple[int, int, str], tuple[int, int]]  # the number of places, and where the counts begin

    def columns(self, key: Key) -> Iterator[Columns]:
        with open(self.path, "rb") as file:
            for part in self.parts.get(key, ()):
                yield {name: _column(file, at) for name, at in part.items()}

    def neurons(self) -> Counts:
        with open(self.path, "rb") as file:
            return {key: NeuronCounts(n, *torch.from_numpy(_column(file, at))) for key, (n, at) in self.counts.items()}


class BatchFiles:
    """The batches of one shard that are on disk, in order: its first prompts.

    A batch is there whole or not at all, and stays there before `write` returns.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batches = list(_in_order(folder))

    @property
    def prompts(self) -> int:
        """How many prompts of the shard are kept."""
        return sum(batch.prompts for batch in self._batches)

    @property
    def names(self) -> dict[str, list[str]]:
        """The names that codes in the columns stand for."""
        return self._batches[-1].names if self._batches else {}

    @property
    def keys(self) -> list[Key]:
        """Every table, layer and site that has columns."""
        return list(dict.fromkeys(key for batch in self._batches for key in batch.parts))

    def columns(self, key: Key) -> Iterator[Columns]:
        """The pieces of a table, layer and site, batch by batch."""
        for batch in self._batches:
            yield from batch.columns(key)

    def neurons(self) -> Iterator[Counts]:
        """How often neurons fired, batch by batch."""
        yield from (batch.neurons() for batch in self._batches)

    def write(
        self, prompts: int, parts: Mapping[Key, Sequence[Columns]], counts: Counts, names: Mapping[str, list[str]]
    ) -> None:
        """Keep what the next `prompts` of the shard gave. Raises RunError where the disk refuses."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be made: {error.strerror}") from error
        index: dict[str, Any] = {"prompts": prompts, "names": names, "parts": [], "counts": []}
        arrays, what = _paths(self.folder, self.prompts)
        with replacing(arrays, RunError) as temporary, open(temporary, "wb") as file:
            for key, pieces in parts.items():
                placed = [{name: _put(file, values) for name, values in piece.items()} for piece in pieces]
                index["parts"].append([*key, placed])
            for place, count in counts.items():
                rows = torch.stack([count.base, count.tuned, count.flips]).cpu().numpy()
                index["counts"].append([*place, count.n, _put(file, rows)])
        with replacing(what, RunError) as temporary:  # last: it says that the other is whole
            temporary.write_text(json.dumps(index), encoding="ascii")
        self._batches.append(_read(arrays, what))

    def remove(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def kept_prompts(directory: Path, shard: str) -> int:
    """How many prompts of a shard are on disk below the run's `directory`."""
    return BatchFiles(directory / BATCHES / shard).prompts


def _in_order(folder: Path) -> Iterator[_Batch]:
    paths = _paths(folder, prompts := 0)
    while all(path.exists() for path in paths):
        yield (batch := _read(*paths))
        paths = _paths(folder, prompts := prompts + batch.prompts)


def _paths(folder: Path, prompts: int) -> tuple[Path, Path]:
    """The arrays of the batch that so many prompts come before, and the index of them."""
    return folder / f"{prompts:07d}.npy", folder / f"{prompts:07d}.json"


def _read(arrays: Path, what: Path) -> _Batch:
    index = json.loads(what.read_bytes())
    parts = {(table, layer, site): pieces for table, layer, site, pieces in index["parts"]}
    counts = {(layer, expert, domain): (n, at) for layer, expert, domain, n, at in index["counts"]}
    return _Batch(arrays, index["prompts"], index["names"], parts, counts)


def _put(file: Any, values: NDArray[Any]) -> int | list[Any]:
    """Append an array to a file; where it begins. Texts are not appended, but are their own place."""
    if values.dtype == object:
        texts: list[Any] = values.tolist()
        return texts
    at = int(file.tell())
    np.save(file, values, allow_pickle=False)
    return at


def _column(file: Any, at: int | list[Any]) -> NDArray[Any]:
    if isinstance(at, list):
        return np.array(at, dtype=object)
    file.seek(at, os.SEEK_SET)
    values: NDArray[Any] = np.load(file, allow_pickle=False)
    return values
