"""A checkpoint written tensor by tensor: its shapes are known before its values, so a header comes first, then data.

Files hold the tensors that the source's files hold, under the same names, so that any loader of those loads these.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from tv.arithmetic.rounding import stored_dtype
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.location import BESIDE
from tv.checkpoints.opening import Source
from tv.checkpoints.parameters import Place
from tv.checkpoints.safetensors_files import header_of
from tv.checkpoints.written_config import STORED
from tv.errors import CheckpointError
from tv.runtime.live_models import is_live
from tv.runtime.progress import ProgressOption, reporting


class Moved(Protocol):
    """The new values of a checkpoint's parameters, in the dtype to store."""

    def read(self, name: str, expert: int = -1) -> Tensor:
        """A parameter, or one expert of it."""

    def parts(self, name: str, expert: int = -1) -> Iterator[Tensor]:
        """The same in successive rows."""


DTYPES = STORED
SHARD = 5 * 10**9  # bytes
_WORDS = {
    **{torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}


@dataclass(frozen=True)
class Entry:
    """One tensor to write to a safetensors file."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    values: Callable[[], Iterable[Tensor]]  # its data, in pieces of any shape

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def entries(checkpoint: Checkpoint, moved: Moved, dtype: torch.dtype) -> list[Entry]:
    """Every tensor of the checkpoint's files: those of floats as they are moved, others as they are."""
    last: dict[tuple[str, int], Tensor] = {}

    def once(name: str, expert: int) -> Tensor:
        """Several tensors may be rows of one parameter, which is kept until another is read."""
        if (name, expert) not in last:
            last.clear()
            last[name, expert] = moved.read(name, expert)
        return last[name, expert]

    def values(place: Place, shape: tuple[int, ...]) -> Iterator[Tensor]:
        if place.expert < 0 and len(shape) > 2:
            for expert in range(shape[0]):
                yield from moved.parts(place.name, expert)
        elif place.rows is None:
            yield from moved.parts(place.name, place.expert)
        else:
            yield once(place.name, place.expert)[slice(*place.rows)]

    tensors = []
    for place in checkpoint.places:
        shape = checkpoint.info(place.name).shape
        entry_shape = shape if place.expert < 0 else shape[1:]
        entry_shape = entry_shape if place.rows is None else (place.rows[1] - place.rows[0], *entry_shape[1:])
        of_place = stored_dtype(checkpoint, place.name, dtype)
        tensors.append(Entry(place.key, of_place, entry_shape, partial(values, place, shape)))
    tensors += _reverted(checkpoint, moved, dtype)
    for key, buffer in checkpoint.buffers.items():
        tensors.append(Entry(key, buffer.dtype, tuple(buffer.shape), partial(iter, [buffer])))
    return tensors


def _reverted(checkpoint: Checkpoint, moved: Moved, dtype: torch.dtype) -> Iterator[Entry]:
    """The tensors of the files that transformers makes parameters of: made back by its own steps, a group at a time."""
    if not checkpoint.converted:
        return
    from tv.architecture.resolve import skeleton
    from tv.runtime.transformers_private import revert_weight_conversion

    last: dict[tuple[str, ...], dict[str, Tensor]] = {}
    model = skeleton(checkpoint.config)

    def values(names: tuple[str, ...], key: str) -> Iterator[Tensor]:
        if names not in last:
            last.clear()
            last[names] = revert_weight_conversion(model, {name: moved.read(name) for name in names})
        yield last[names][key]

    for group in map(tuple, checkpoint.converted):
        shapes = {name: torch.empty(checkpoint.info(name).shape, device="meta") for name in group}
        for key, value in revert_weight_conversion(model, shapes).items():
            yield Entry(key, dtype, tuple(value.shape), partial(values, group, key))


def write_weights(
    directory: Path,
    tensors: Sequence[Entry],
    metadata: dict[str, str],
    *,
    shard: int = SHARD,
    progress: ProgressOption = None,
) -> None:
    """Write the tensors into `directory` in files of at most `shard` bytes, with an index if there are several."""
    shards: list[list[Entry]] = [[]]
    for entry in tensors:
        if shards[-1] and sum(other.size for other in shards[-1]) + entry.size > shard:
            shards.append([])
        shards[-1].append(entry)
    n, done = len(shards), 0
    names = [f"model-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)] if n > 1 else ["model.safetensors"]
    for name, shard_tensors in zip(names, shards, strict=True):
        shard_tensors.sort(key=lambda entry: -entry.dtype.itemsize)  # keeps every tensor aligned to its dtype
        with open(directory / name, "wb") as file:
            file.write(
                header_of(
                    [(entry.key, _WORDS[entry.dtype], entry.shape, entry.size) for entry in shard_tensors], metadata
                )
            )
            for entry in shard_tensors:
                for value in entry.values():
                    file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
                done += 1
                reporting(progress)("apply", done, len(tensors), entry.key)
    if n > 1:
        weights = {
            entry.key: name for name, shard_tensors in zip(names, shards, strict=True) for entry in shard_tensors
        }
        index = {"metadata": {"total_size": sum(entry.size for entry in tensors)}, "weight_map": weights}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_surroundings(directory: Path, source: Source, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """What a checkpoint, opened from `source`, has beside weights: configuration, generation settings, tokenizer.

    Files go by name: what training left there, code and quantisation's settings stay behind.
    """
    checkpoint.write_config(directory, dtype)
    under = checkpoint.base or checkpoint
    places = [place for place in (under.path, checkpoint.path) if place is not None]  # an adapter's files come on top
    for place in places:
        for file in (file for pattern in BESIDE for file in sorted(place.glob(pattern)) if file.is_file()):
            target = directory / file.relative_to(place)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    if places:
        return
    if is_live(source) and source.generation_config is not None:
        source.generation_config.save_pretrained(directory)
    if is_live(source) or isinstance(source, str | Path):
        from tv.checkpoints.live import load_tokenizer

        with suppress(CheckpointError):  # a live model may have no tokenizer anywhere; it loads without
            load_tokenizer(source).save_pretrained(directory)
