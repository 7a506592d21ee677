"""The checkpoints of one training in their order, and when a curve over them passes a level."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """A checkpoint on the way."""

    source: str | Path
    name: str
    step: float  # the number that its name ends in, where the names differ in numbers alone; else its place


def in_order(checkpoints: Sequence[str | Path]) -> list[Place]:
    """The checkpoints by step: a directory that holds `checkpoint-…` stands for those.

    Examples:
        >>> [place.name for place in in_order(["runs/checkpoint-20", "runs/checkpoint-5"])]
        ['checkpoint-5', 'checkpoint-20']
    """
    found: list[str | Path] = []
    for one in checkpoints:
        found += ([] if _is_model(Path(one)) else _numbered(Path(one))) or [one]
    numbers = [re.search(r"(\d+)(\.safetensors|\.gguf)?$", Path(one).name) for one in found]
    alike = len({re.sub(r"\d+", "", Path(one).name) for one in found}) == 1  # `tuned-0` is no step before `step-8`
    if alike and all(numbers) and len({match[1] for match in numbers if match}) == len(found):
        steps = [float(match[1]) for match in numbers if match]
    else:
        steps = [float(i + 1) for i in range(len(found))]
    names = [Path(one).name for one in found]
    if len(set(names)) < len(names):
        names = [str(one) for one in found]
    return sorted((Place(*one) for one in zip(found, names, steps, strict=True)), key=lambda place: place.step)


def _numbered(run: Path) -> list[Path]:
    """The directories `checkpoint-NUMBER` of a training by their numbers; copies such as `checkpoint-best` are none."""
    inner = [path for path in run.glob("checkpoint-*") if path.is_dir() and path.name.partition("-")[2].isdecimal()]
    return sorted(inner, key=lambda path: int(path.name.partition("-")[2]))


def _is_model(path: Path) -> bool:
    return any((path / name).is_file() for name in ("config.json", "adapter_config.json"))


def crossing(steps: Floats, shares: Floats, level: float = 0.5) -> Floats:
    """Where each curve of shares first reaches a level, interpolated between checkpoints; NaN where it never does.

    Examples:
        >>> crossing(np.array([0.0, 10.0, 20.0]), np.array([[0.0, 0.25, 1.0], [0.0, 0.1, 0.2]])).round(1).tolist()
        [13.3, nan]
    """
    over = shares >= level
    at = over.argmax(1)
    rows = np.arange(len(shares))
    before = np.maximum(at - 1, 0)
    low, high = shares[rows, before], shares[rows, at]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where(at == before, 0.0, (level - low) / (high - low))
    found = steps[before] + part * (steps[at] - steps[before])
    return np.where(over.any(1), found, np.nan)
