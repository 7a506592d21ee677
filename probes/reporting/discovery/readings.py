"""Lists of words as a page shows them: every value as a bar, with marks where the nulls end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from probes.reporting.discovery.found import Found, as_read, part_in_words, unit_of
from probes.reporting.words import interval, number, q_value

#: Words shown of a list in which none stands out.
QUIET = 8
_NULLS = ("noise", "sham", "floor")


@dataclass(frozen=True)
class ShownWord:
    """A word of a list. Bar, interval and marks are in percent of the widest thing in the list."""

    token: str
    stands_out: bool
    bar: float
    marks: dict[str, float]  # by null, where there is one
    value: str
    interval: str
    nulls: tuple[str, ...]
    q: str


@dataclass(frozen=True)
class Reading:
    """A list of words: those that stand out first."""

    name: str
    unit: str
    words: list[ShownWord]
    n_standing: int


@dataclass(frozen=True)
class ReadPart:
    """A part's lists: those with words that stand out, and the others."""

    name: str
    looks_for: str
    standing: list[Reading]
    quiet: list[Reading]


def read_parts(found: Found) -> list[ReadPart]:
    """Every part that reads words, the one with the smallest q first."""
    by_part = sorted(found.words.groupby("part", sort=False), key=lambda item: float(item[1].q.min()))
    return [_part(str(name), rows) for name, rows in by_part]


def _part(name: str, rows: pd.DataFrame) -> ReadPart:
    readings = [_reading(name, str(reading), own) for reading, own in rows.groupby("reading", sort=False)]
    standing = [one for one in readings if one.n_standing]
    return ReadPart(name, part_in_words(name), standing, [one for one in readings if not one.n_standing])


def _reading(part: str, name: str, rows: pd.DataFrame) -> Reading:
    out = rows.stands_out.astype(bool)
    order = rows.assign(quiet=~out).sort_values(["quiet", "rank"])
    shown = order if out.any() else order.head(QUIET)
    widest = float(shown[["value", "hi", *_NULLS]].astype(float).max().max())
    return Reading(name, unit_of(part, name), list(_words(shown, widest if widest > 0 else 1.0)), int(out.sum()))


def _words(rows: pd.DataFrame, widest: float) -> Iterator[ShownWord]:
    def across(value: Any) -> float:
        return round(100 * min(max(float(value) / widest, 0.0), 1.0), 1)

    for row in rows.to_dict("records"):
        yield ShownWord(
            token=as_read(str(row["token"])),
            stands_out=bool(row["stands_out"]),
            bar=across(row["value"]),
            marks={name: across(row[name]) for name in _NULLS if pd.notna(row[name])},
            value=number(row["value"]),
            interval=interval(row["lo"], row["hi"]),
            nulls=tuple(number(row[name]) for name in _NULLS),
            q=q_value(row["q"]).removeprefix("q ").removeprefix("= "),
        )
