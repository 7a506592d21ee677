"""What a benchmark found, so that `table.py` can put many into one table."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ratio:
    """How many times what `ours` took `theirs` took, in one round each: above 1, ours is quicker (or smaller)."""

    what: str
    theirs: str
    ours: str
    values: tuple[float, ...]
    bound: float | None = None  # on the median, from below

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def figure(self) -> str:
        """Median and range."""
        return f"{self.median:.2f} ({min(self.values):.2f}–{max(self.values):.2f})"

    def text(self) -> str:
        """The same, and what the median is held against."""
        if self.bound is None:
            return self.figure()
        return f"{self.figure()}, bound ≥ {self.bound:g}: {'met' if self.median >= self.bound else 'MISSED'}"


def ratio(
    what: str, theirs: tuple[str, Sequence[float]], ours: tuple[str, Sequence[float]], bound: float | None = None
) -> Ratio:
    """Of what two ways took in the same rounds."""
    values = tuple(a / b for a, b in zip(theirs[1], ours[1], strict=True))
    return Ratio(what, theirs[0], ours[0], values, bound)


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--json FILE`: where the ratios go, beside what is printed."""
    parser.add_argument("--json", type=Path, help="write the ratios there too")


def report(ratios: Sequence[Ratio], path: Path | None) -> None:
    """Print the ratios, and write them to `path` if there is one."""
    for own in ratios:
        print(f"{own.what}: {own.theirs} / {own.ours} {own.text()}")
    if path:
        path.write_text(json.dumps([asdict(own) for own in ratios]), encoding="utf-8")


def read(path: Path) -> list[Ratio]:
    """What `report` wrote."""
    return [Ratio(**row | {"values": tuple(row["values"])}) for row in json.loads(path.read_text(encoding="utf-8"))]
