"""Small line charts, drawn as SVG, so that a page of a discovery carries no library that draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.reporting.discovery.found import Found
from probes.reporting.words import number

#: Of the plot's area, in pixels; its margins are `LEFT` and `BOTTOM`.
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 220, 130, 40, 34, 8
#: What stands behind a measure's name in its column, and what the line is called.
SIDES = {"": "tuned", "_sham": "most extreme sham", "_random": "most extreme random T", "_floor": "rounding"}
_PLACES = {"first": "the first five tokens", "bos": "the BOS token", "far": "from the ninth token on"}


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, its points for `polyline`, and each with its numbers."""

    name: str
    points: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A chart: ticks are (pixel, label)."""

    title: str
    x: str
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    lines: list[Line]


@dataclass(frozen=True)
class Curves:
    """Charts that answer one question."""

    title: str
    note: str
    charts: list[Chart]


def curves_of(found: Found) -> list[Curves]:
    """How Δh lies over depth, grows along T and spreads over directions; what the run has of it."""
    return [curves for curves in (_norms(found), _alike(found), _growth(found), _rank(found)) if curves.charts]


def _norms(found: Found) -> Curves:
    rows = found.rows("difference_norms")
    names = {"constant": "constant share", "size": "length, share of ‖h‖"}
    note = (
        "Constant share: ‖mean Δh‖ over the mean ‖Δh‖. At 1 the tuning adds the same vector everywhere, which a "
        "lens can read. Narrow tuning does so, and shams do too: theirs is the line to be above."
    )
    return Curves("Is Δh the same everywhere?", note, list(_by_place(rows, "depth", names)))


def _alike(found: Found) -> Curves:
    rows = found.rows("activation_cka")
    names = {"cka": "CKA", "cosine": "cosine"}
    note = (
        "How alike the states of base and tuned are: linear CKA without bias, over one token of every text, and the "
        "mean cosine of a token's two states. The axis does not begin at 0."
    )
    charts = [
        _chart(rows.sort_values("depth"), "depth", name, title, low=None) for name, title in names.items() if len(rows)
    ]
    return Curves("How alike are the states?", note, charts)


def _growth(found: Found) -> Curves:
    rows = found.rows("difference_growth")
    names = {"size": "length, share of ‖h‖", "cosine": "cosine with α = 1", "score": "score of its words, sd"}
    note = (
        "Mean Δh at θ + αT. Were T a small step, length would grow in proportion to α, the cosine stay at 1 and the "
        "words of α = 1 score the same; a cosine that falls says that the step is too long for that."
    )
    return Curves("Does Δh grow along T?", note, list(_by_place(rows, "alpha", names)))


def _rank(found: Found) -> Curves:
    rows = found.rows("difference_rank")
    note = (
        "The share of the variance of Δh in one half of the texts along the first components of the other half, mean "
        "over draws of one token a text. Where the tuned model needs fewer components than shams, it does fewer things."
    )
    means = rows.drop(columns=["tuned", "seed"], errors="ignore").groupby(["depth", "components"], as_index=False)
    charts = [
        _chart(own, "components", "share", f"depth {depth}: share of variance")
        for depth, own in (means.mean() if len(rows) else rows).groupby("depth")
    ]
    return Curves("How many directions has Δh?", note, charts)


def _by_place(rows: pd.DataFrame, x: str, names: dict[str, str]) -> Iterator[Chart]:
    places = [place for place in _PLACES if (rows.place == place).any()]
    for name, title in names.items():
        for place in places:
            yield _chart(rows[rows.place == place].sort_values(x), x, name, f"{_PLACES[place]}: {title}")


def _chart(rows: pd.DataFrame, x: str, name: str, title: str, low: float | None = 0.0) -> Chart:
    """A measure of the tuned model and, where the table has them, of the controls; without `low` from the least."""
    xs = rows[x].to_numpy(np.float64)
    at = {float(value): round(LEFT + WIDTH * i / max(len(xs) - 1, 1), 1) for i, value in enumerate(xs)}
    columns = {side: f"{name}{suffix}" for suffix, side in SIDES.items() if f"{name}{suffix}" in rows}
    values = {side: rows[column].to_numpy(np.float64) for side, column in columns.items()}
    known = np.concatenate([own[np.isfinite(own)] for own in values.values()])
    high = known.max(initial=0) or 1.0
    low = float(min(known.min(initial=high), high if low is None else low))
    if low == high:
        low = high - 1

    def up(value: float) -> float:
        return round(TOP + HEIGHT * (1 - (value - low) / (high - low)), 1)

    lines = []
    for side, own in values.items():
        dots = [
            (at[place], up(value), f"{side}, {x} {number(place)}: {number(value)}")
            for place, value in zip(xs.tolist(), own.tolist(), strict=True)
            if np.isfinite(value)
        ]
        if dots:
            lines.append(Line(side, " ".join(f"{a},{b}" for a, b, _ in dots), dots))
    ticks = [(up(value), number(value, 2)) for value in _ticks(low, high)]
    across = [(pixel, f"{value:g}") for value, pixel in at.items()][:: -(-len(at) // 8)]
    return Chart(title, {"alpha": "α"}.get(x, x), across, ticks, lines)


def _ticks(low: float, high: float) -> Sequence[float]:
    """About four round numbers."""
    rough = (high - low) / 3
    size = 10 ** np.floor(np.log10(rough))
    step = next(size * nice for nice in (1, 2, 5, 10) if size * nice >= rough)
    return [float(value) for value in np.arange(np.ceil(low / step), np.floor(high / step + 1e-9) + 1) * step]
