"""What an attribution has computed, on disk as soon as it is there: a resumed run does not compute it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from probes.attribution.forwards import Floats, Variant
from probes.attribution.known import Arrays, Known
from probes.attribution.units import Unit
from probes.errors import RunError
from probes.store.journal import append_line, whole_lines
from tv.runtime.atomic import replacing

_PROMPTS = "prompts"  # the ids, in the order of the numbers that the other names begin with


class Kept(Known):
    """Values of the metric, in a folder: a line for all that one reading gave, so that it is read whole or again.

    What a method computes by prompt and is no value of the metric, such as the shares of `path`, has files of its own.
    """

    def __init__(self, folder: Path, earlier: frozenset[str] = frozenset()) -> None:
        super().__init__(earlier)
        self.folder = folder
        for line in whole_lines(self._file):
            super().keep(line["prompts"], {_variant(name): np.array(values) for name, values in line["values"]})

    def keep(self, prompts: Sequence[str], found: Mapping[Variant, Floats]) -> None:
        """Keep what was computed on some prompts, here and on disk. Raises RunError where the disk refuses."""
        super().keep(prompts, found)
        if found:
            self._make(self.folder)
            values = [(_name(variant), values.tolist()) for variant, values in found.items()]
            append_line(self._file, {"prompts": list(prompts), "values": values})

    def arrays(self, label: str) -> Iterator[tuple[str, Arrays]]:
        """By prompt, what `keep_arrays` kept under a label."""
        for path in sorted((self.folder / label).glob("*.npz")):
            with np.load(path, allow_pickle=False) as kept:
                prompts = kept[_PROMPTS].tolist()
                for i, prompt in enumerate(prompts):
                    names = {name: name.partition(" ")[2] for name in kept.files if name.startswith(f"{i} ")}
                    yield prompt, {own: kept[name] for name, own in names.items()}

    def keep_arrays(self, label: str, found: Mapping[str, Arrays]) -> None:
        """Keep what a method computed by prompt, in one file. Raises RunError where the disk refuses."""
        folder = self.folder / label
        self._make(folder)
        named = {f"{i} {name}": values for i, own in enumerate(found.values()) for name, values in own.items()}
        number = sum(1 for _ in folder.glob("*.npz"))
        with replacing(folder / f"{number:06d}.npz", RunError) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{**named, _PROMPTS: np.array(list(found))})  # type: ignore[arg-type]

    @property
    def words(self) -> str:
        """What is kept, in words; empty where nothing is."""
        values = sum(map(len, self._values.values()))
        counts = [(values, f"{values:,} values of {len(self._values):,} variants")]
        for folder in sorted(path for path in self.folder.glob("*") if path.is_dir()):
            n = sum(1 for _ in self.arrays(folder.name))
            counts.append((n, f"{n:,} prompts of {folder.name.partition(' ')[0]}"))
        return " and ".join(words for n, words in counts if n)

    @property
    def _file(self) -> Path:
        return self.folder / "values.jsonl"

    @staticmethod
    def _make(folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder}: cannot be created: {error.strerror}") from error


def _name(variant: Variant) -> list[Any]:
    return [variant.model, [astuple(unit) for unit in variant.units], variant.control, variant.draw, variant.part]


def _variant(name: list[Any]) -> Variant:
    model, units, *rest = name
    return Variant(model, tuple(Unit(*unit) for unit in units), *rest)
