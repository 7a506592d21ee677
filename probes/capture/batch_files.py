"""The batches of a shard on disk, until the shard is whole: what a killed run need not compute again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

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

_COUNTED = ("base", "tuned", "flips")  # of `NeuronCounts`, in order


@dataclass(frozen=True)
class _Block:
    """Where the columns of a table, layer and site are in the file: one after the other, as bytes."""

    at: int
    columns: list[tuple[str, str | None, Any]]  # name, dtype and shape; or name, None and the texts themselves

    def read(self, file: BinaryIO) -> Columns:
        file.seek(self.at)
        found: Columns = {}
        for name, dtype, shape in self.columns:
            if dtype is None:
                found[name] = np.array(shape, dtype=object)
            else:
                size = np.dtype(dtype).itemsize * prod(shape)
                found[name] = np.frombuffer(file.read(size), dtype).reshape(shape)
        return found


@dataclass(frozen=True)
class _Batch:
    """One batch: the columns of every table, layer and site."""

    path: Path
    prompts: int
    names: dict[str, list[str]]
    parts: dict[Key, _Block]
    counts: dict[tuple[int, int, str], tuple[int, _Block]]  # the number of places, and the counts

    def columns(self, key: Key) -> Iterator[Columns]:
        if key in self.parts:
            with open(self.path, "rb") as file:
                yield self.parts[key].read(file)

    def neurons(self) -> Counts:
        with open(self.path, "rb") as file:
            read = ((key, n, block.read(file)) for key, (n, block) in self.counts.items())
            return {
                key: NeuronCounts(n, *(torch.from_numpy(counts[name].copy()) for name in _COUNTED))
                for key, n, counts in read
            }


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
        """The columns of a table, layer and site, batch by batch."""
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
            raise RunError(f"{self.folder}: cannot be created: {error.strerror}") from error
        index: dict[str, Any] = {"prompts": prompts, "names": names, "parts": [], "counts": []}
        arrays, what = _paths(self.folder, self.prompts)
        with replacing(arrays, RunError) as temporary, open(temporary, "wb") as file:
            for key, pieces in parts.items():
                columns = {name: stacked([piece[name] for piece in pieces]) for name in pieces[0]}
                index["parts"].append([*key, *_put(file, columns)])
            for place, count in counts.items():
                rows = {name: getattr(count, name).cpu().numpy() for name in _COUNTED}
                index["counts"].append([*place, count.n, *_put(file, rows)])
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
    return folder / f"{prompts:07d}.bin", folder / f"{prompts:07d}.json"


def stacked(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """All rows of a column. Patterns of a shared expert and of chosen ones may differ in width: zeros fill them up."""
    widths = {part.shape[1] for part in parts if part.ndim == 2}
    if len(widths) > 1:
        parts = [np.pad(part, ((0, 0), (0, max(widths) - part.shape[1]))) for part in parts]
    return np.concatenate(parts)


def _read(arrays: Path, what: Path) -> _Batch:
    index = json.loads(what.read_bytes())
    parts = {(table, layer, site): _Block(*block) for table, layer, site, *block in index["parts"]}
    counts = {(layer, expert, domain): (n, _Block(*block)) for layer, expert, domain, n, *block in index["counts"]}
    return _Batch(arrays, index["prompts"], index["names"], parts, counts)


def _put(file: BinaryIO, columns: Columns) -> tuple[int, list[tuple[str, str | None, Any]]]:
    """Append columns to a file: where they begin and what they are."""
    at = file.tell()
    numbers = [np.ascontiguousarray(values) for values in columns.values() if values.dtype != object]
    file.writelines(values.data for values in numbers if values.size)
    return at, [
        (name, None, values.tolist()) if values.dtype == object else (name, values.dtype.str, values.shape)
        for name, values in columns.items()
    ]
