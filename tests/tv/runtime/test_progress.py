"""A person who waits sees one line; nobody else sees anything."""

import io
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import tv
from tests.pairs import build_pair
from tv.runtime.progress import VARIABLE, Line, is_watched, reporting


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def _screen(monkeypatch: pytest.MonkeyPatch) -> _Screen:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "stderr", screen := _Screen())
    return screen


def _clock(*seconds: float) -> Callable[[], float]:
    return iter(seconds).__next__


def test_one_line_is_rewritten_and_left_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _screen(monkeypatch)
    line = Line(_clock(0, 0.5, 2, 2.1, 4, 8))
    for done in (0, 1, 2, 3, 4, 8):
        line("capture a\x1b[2J", done, 8, "")
    first, second, last = screen.getvalue().split("\r")[1:]
    assert first.rstrip() == r"capture a\x1b[2J 2/8, 2 s, about 9 s left"
    assert second.rstrip() == r"capture a\x1b[2J 4/8, 4 s, about 5 s left"
    assert last.endswith("\n") and last.rstrip() == r"capture a\x1b[2J 8/8, 8 s" and len(last) > len(second)


def test_a_short_stage_leaves_nothing_and_an_unfinished_one_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _screen(monkeypatch)
    line = Line(_clock(0, 0.9, 1, 5, 6))
    line("short", 0, 2, "")
    line("short", 2, 2, "")
    assert screen.getvalue() == ""
    line("long", 0, 9, "")
    line("long", 1, 9, "")
    line("next", 0, 9, "")
    assert screen.getvalue() == "\rlong 1/9, 4 s\n"


def test_it_is_shown_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    _screen(monkeypatch)
    told: list[object] = []
    assert is_watched() and isinstance(reporting(None), Line)
    assert not isinstance(reporting(False), Line)
    reporting(lambda *step: told.append(step))("a", 1, 1, "")
    assert told == [("a", 1, 1, "")]
    monkeypatch.setenv(VARIABLE, "off")
    assert not is_watched()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not is_watched()
    notebook = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    assert is_watched()
    monkeypatch.setattr(sys, "stderr", None)
    assert not is_watched()


@pytest.mark.parametrize(("progress", "shown"), [(None, True), (False, False)])
def test_python_shows_it_on_a_terminal(progress: None, shown: bool, tmp_path, monkeypatch) -> None:
    screen = _screen(monkeypatch)
    monkeypatch.setattr("tv.runtime.progress._LINE", Line(iter(range(10_000)).__next__))
    pair = build_pair(tmp_path)
    tv.geometry(*pair, compute=tv.Compute(progress=progress))
    tv.apply(pair[0], {pair[1]: 0.5}, out=tmp_path / "half", progress=progress)
    assert ("\rgeometry " in screen.getvalue()) == ("\rapply " in screen.getvalue()) == shown
