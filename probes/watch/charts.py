"""Curves as SVG, drawn here: a page that is written every few seconds holds no script."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 8, 26
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#882255", "#555555")


@dataclass(frozen=True)
class Line:
    """A curve over steps, with its interval where it has one; a dashed one is a null or a floor."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    lo: Sequence[float] | None = None
    hi: Sequence[float] | None = None
    dashed: bool = False


def chart(lines: Sequence[Line], unit: str) -> str:
    """One chart with its legend. A value that is not finite leaves a gap; all text is escaped."""
    shown = [line for line in lines if any(map(math.isfinite, line.y))]
    if not shown:
        return "<p>nothing measured yet</p>"
    xs = [x for line in shown for x in line.x]
    ys = [y for line in shown for part in (line.y, line.lo or (), line.hi or ()) for y in part if math.isfinite(y)]
    (x0, x1), (y0, y1) = _range(xs), _range([*ys, 0.0] if min(ys) >= 0 else ys)

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        return across, _TOP + (y1 - y) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(unit)} over steps">']
    for y in (y0, (y0 + y1) / 2, y1):
        _, down = at(x0, y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{down + 4:.1f}" text-anchor="end">{_tick(y)}</text>')
    for x, anchor in ((x0, "start"), (x1, "end")):
        across, _ = at(x, y0)
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">step {_tick(x)}</text>')
    for i, line in enumerate(shown):
        colour = _COLOURS[i % len(_COLOURS)]
        if line.lo is not None and line.hi is not None:
            ends = [(x, a, b) for x, a, b in zip(line.x, line.lo, line.hi, strict=True) if math.isfinite(a + b)]
            there, back = [at(x, b) for x, _, b in ends], [at(x, a) for x, a, _ in reversed(ends)]
            parts.append(f'<polygon fill="{colour}" fill-opacity=".12" points="{_points([*there, *back])}"/>')
        dash = ' stroke-dasharray="4 3"' if line.dashed else ""
        for run in _runs(line):
            points = _points([at(x, y) for x, y in run])
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8"{dash} points="{points}"/>')
        for x, y in zip(line.x, line.y, strict=True):
            if math.isfinite(y):
                across, down = at(x, y)
                said = html.escape(f"{line.name}, step {_tick(x)}: {y:.4g}")
                parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.4" fill="{colour}">')
                parts.append(f"<title>{said}</title></circle>")
    legend = "".join(
        f'<span><i style="background:{_COLOURS[i % len(_COLOURS)]}"></i>{html.escape(line.name)}'
        f"{' (dashed)' if line.dashed else ''}</span>"
        for i, line in enumerate(shown)
    )
    return f'{"".join(parts)}</svg><p class="legend">{legend}</p>'


def table(heads: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as an HTML table; numbers in four digits, all text escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in heads) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return "–" if value is None else html.escape(str(value))


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _runs(line: Line) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _tick(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
