"""What a benchmark found, so that `table.py` can put many into one table."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wanted import BOUNDS


@dataclass(frozen=True)
class Ratio:
    """How many times what `ours` took `theirs` took, in one round each: above 1, ours is quicker (or smaller)."""

    what: str
    theirs: str
    ours: str
    values: tuple[float, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.what, self.theirs, self.ours

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def figure(self) -> str:
        """Median and range."""
        spread = f"{min(self.values):.2f}–{max(self.values):.2f}" if len(self.values) > 1 else "one round"
        return f"{self.median:.2f} ({spread})"

    def verdict(self) -> str:
        """Whether the median meets what is wanted; empty where nothing is."""
        bound = BOUNDS.get(self.key)
        return "" if bound is None else "met" if self.median >= bound else "missed"


def ratio(what: str, theirs: tuple[str, Sequence[float]], ours: tuple[str, Sequence[float]]) -> Ratio:
    """Of what two ways took in the same rounds."""
    return Ratio(what, theirs[0], ours[0], tuple(a / b for a, b in zip(theirs[1], ours[1], strict=True)))


def allowed(what: str, most: float, unit: str, taken: Sequence[float]) -> Ratio:
    """How many times what was taken goes into what is allowed."""
    return Ratio(what, f"{most:g} {unit}", "ours", tuple(most / value for value in taken))


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--json FILE`: where the ratios go, beside what is printed."""
    parser.add_argument("--json", type=Path, help="write the ratios there too")


def report(ratios: Sequence[Ratio], path: Path | None) -> None:
    """Print the ratios with what is wanted of them, and write them to `path` if there is one."""
    for own in ratios:
        said = f", wanted ≥ {BOUNDS[own.key]:g}: {own.verdict()}" if own.verdict() else ""
        print(f"{own.what}: {own.theirs} / {own.ours} {own.figure()}{said}")
    if path:
        path.write_text(json.dumps([asdict(own) for own in ratios]), encoding="utf-8")


def read(path: Path) -> list[Ratio]:
    """What `report` wrote."""
    return parsed(json.loads(path.read_text(encoding="utf-8")))


def parsed(rows: list[dict]) -> list[Ratio]:
    """Ratios out of JSON."""
    return [Ratio(**row | {"values": tuple(row["values"])}) for row in rows]
