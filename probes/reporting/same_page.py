"""Whether two pages say the same: their text, their figures' numbers, and what draws them."""

from __future__ import annotations

import base64
import binascii
import gzip
import html
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

_PACKED = re.compile(r'<script type="application/gzip" id="(\w+)">([^<]*)</script>')
_DRAWING = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_LONG = 2000  # lines
_SHOWN = 60  # characters of a difference
_MOST = 2**28  # bytes of unpacked figures: a file that says it holds more is not read


@dataclass(frozen=True)
class PageDifferences:
    """How a page differs from what the tables give.

    Attributes:
        said: Differences of text and figures in words, in the page's order; empty where it says the same.
        drawn: What else differs: "style", "script", "plotly".
    """

    said: tuple[str, ...]
    drawn: tuple[str, ...]


def page_differences(page: str, expected: str, most: int = 20) -> PageDifferences:
    """How a page differs from the one expected.

    Args:
        page: HTML, as it was found.
        expected: As it would be written now.
        most: Differences that are named at most.

    Examples:
        >>> page_differences("<p>KL 0.53</p>", "<p>KL 0.52</p>").said
        ('it says "KL 0.53", and the tables give "KL 0.52"',)
    """
    sides = [_taken_apart(text) for text in (page, expected)]
    said = []
    for one in _said(*(side.lines for side in sides), *(side.figures for side in sides)):
        said.append(one)
        if len(said) == most:
            break
    drawn = [name for name in sides[1].drawing if sides[0].drawing.get(name) != sides[1].drawing[name]]
    drawn += [name for name in sides[0].drawing if name not in sides[1].drawing]
    return PageDifferences(tuple(said), tuple(drawn))


@dataclass(frozen=True)
class _Page:
    lines: list[str]  # with their markup
    figures: Any  # None where they cannot be read
    drawing: dict[str, str]


def _taken_apart(page: str) -> _Page:
    drawing: dict[str, str] = {}
    figures: Any = {}

    def packed(match: re.Match[str]) -> str:
        nonlocal figures
        name, content = match.groups()
        if name == "data":
            figures = _unpacked(content)
        else:
            drawing[name] = content
        return ""

    def drawn(match: re.Match[str]) -> str:
        drawing[match[1]] = drawing.get(match[1], "") + match[2]
        return ""

    rest = _DRAWING.sub(drawn, _PACKED.sub(packed, page))
    return _Page([line.strip() for line in rest.splitlines() if line.strip()], figures, drawing)


def _unpacked(content: str) -> Any:
    try:
        raw = base64.b64decode(content, validate=True)
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            text = file.read(_MOST + 1)
        return json.loads(text) if len(text) <= _MOST else None
    except (binascii.Error, OSError, EOFError, ValueError, RecursionError):
        return None


def _said(lines: list[str], expected: list[str], figures: Any, meant: Any) -> Iterator[str]:
    if lines != expected:
        first = _alike(lines, expected)
        last = _alike(lines[first:][::-1], expected[first:][::-1])
        one, other = lines[first : len(lines) - last], expected[first : len(expected) - last]
        close = max(len(one), len(other)) < _LONG  # looking for what moved takes the square of the lines
        for tag, a, b, c, d in SequenceMatcher(None, one, other, autojunk=not close).get_opcodes():
            if tag != "equal":
                yield _line(" ".join(one[a:b]), " ".join(other[c:d]))
    if figures is None:
        yield "its figures cannot be unpacked"
    else:
        for place, one, other in _unequal(figures, meant):
            yield f"a figure holds {_short(str(one))} at {place}, and the tables give {_short(str(other))}"


def _alike(one: list[str], other: list[str]) -> int:
    """How many lines two lists begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(one), len(other)))


def _line(found: str, meant: str) -> str:
    """Two stretches of a page, cut to where they begin to differ; of their text, or of their markup."""
    texts = [" ".join(html.unescape(_TAG.sub(" ", side)).split()) for side in (found, meant)]
    one, other = texts if texts[0] != texts[1] else (found, meant)
    if not one:
        return f'it lacks "{_short(other)}"'
    if not other:
        return f'it says "{_short(one)}", which the tables do not give'
    start = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))
    start = max(0, one.rfind(" ", 0, max(0, start - _SHOWN // 3)) + 1) if start > _SHOWN // 3 else 0
    return f'it says "{_short(one[start:])}", and the tables give "{_short(other[start:])}"'


def _unequal(found: Any, meant: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(found, dict) and isinstance(meant, dict):
        for key in [*meant, *(key for key in found if key not in meant)]:
            where = f"{place}.{key}" if place else str(key)
            if key in found and key in meant:
                yield from _unequal(found[key], meant[key], where)
            else:
                yield where, "something" if key in found else "nothing", "something" if key in meant else "nothing"
    elif isinstance(found, list) and isinstance(meant, list) and len(found) == len(meant):
        for i, (one, other) in enumerate(zip(found, meant, strict=True)):
            yield from _unequal(one, other, f"{place}[{i}]")
    elif found != meant or type(found) is not type(meant):
        yield place, found, meant


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
