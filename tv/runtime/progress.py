"""How far work is: its pace, the time left, and a line that shows both on a terminal or in a notebook."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any, Literal, Protocol

from tv.errors import printable

#: The environment variable that turns the line off: "off".
VARIABLE = "TUNING_PROBES_PROGRESS"


class Progress(Protocol):
    """A callback for progress: any callable that takes four arguments by position.

    Examples:
        >>> told = []
        >>> def progress(stage, done, total, label):
        ...     told.append((stage, done, total))
        >>> table = tv.align("data/models/base", "data/models/medical", compute=tv.Compute(progress=progress))
        >>> told[-1]
        ('matching', 12, 12)
    """

    def __call__(self, stage: str, done: int, total: int, label: str, /) -> None:
        """Called when a part of the work is done.

        Args:
            stage: What is being done, such as "weights medical".
            done: How many of its parts are done.
            total: How many parts it has.
            label: Names the part that was done last, such as "q 3"; it may be empty.
        """


#: What functions take: a callback, False for none, or None for the line.
ProgressOption = Progress | Literal[False] | None


def reporting(progress: ProgressOption) -> Progress:
    """What to call as work advances: the callback, or for None the line where a person watches, or nothing."""
    if progress is None:
        return _LINE if is_watched() else _nothing
    return progress or _nothing


def is_watched() -> bool:
    """Whether the line is shown: in the main process, on a terminal or in a notebook, unless `VARIABLE` is "off"."""
    if os.environ.get(VARIABLE) == "off" or parent_process() is not None or sys.stderr is None:
        return False
    asked = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(asked, "kernel")


def _nothing(stage: str, done: int, total: int, label: str, /) -> None:
    pass


@dataclass
class Pace:
    """When a stage began, with how many of its parts done already, and how fast it goes."""

    began: float
    first: int
    total: int | None = None
    done: int = 0
    paced: tuple[float, int] | None = None  # when its first part here was done, and how many were then

    def left(self, now: float, done: int, total: int | None) -> float | None:
        """Seconds until it is done, at the pace so far; None where nobody knows.

        The first part does not count: what is made once, for all parts, is made before it is done.
        """
        if total is None or done <= self.first:
            return None
        if self.paced is None:
            self.paced = now, done
        since, first = self.paced
        return (now - since) / (done - first) * (total - done) if done > first else None


def duration(seconds: float) -> str:
    """A time in words: `12 s`, `4 min`, `2 h 10 min`.

    Examples:
        >>> duration(12.4), duration(250), duration(7800)
        ('12 s', '4 min', '2 h 10 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def sentence(stage: str, done: int, total: int | None, label: str, elapsed: float, left: float | None) -> str:
    """A stage in one line.

    Examples:
        >>> sentence("capture medical", 32, 144, "", 5.0, 14.0)
        'capture medical 32/144, 5 s, about 14 s left'
    """
    rest = "" if left is None or done == total else f", about {duration(left)} left"
    parts = (f" {done}/{total}" if total else "") + (f" ({printable(label)})" if label else "")
    return f"{printable(stage)}{parts}, {duration(elapsed)}{rest}"


class Line:
    """One line on stderr, rewritten as a stage advances and left behind when it ends. Short stages leave none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.stage, self.written, self.width = clock, "", 0.0, 0
        self.pace = Pace(0.0, 0)

    def __call__(self, stage: str, done: int, total: int, label: str, /) -> None:
        """Rewrite the line, unless that was done just now."""
        now, pace = self.clock(), self.pace
        if stage != self.stage or done < pace.done or total != pace.total:
            self._break()
            self.stage, self.pace = stage, (pace := Pace(now, done, total))
        pace.done = done
        left, over = pace.left(now, done, total), done >= total
        if now - pace.began >= _QUIET and (over or now - self.written >= _OFTEN):
            text = sentence(stage, done, total, label, now - pace.began, left)
            self._write("\r" + text.ljust(self.width))
            self.written, self.width = now, len(text)
        if over:
            self._break()

    def _break(self) -> None:
        """End the line, where there is one."""
        if self.width:
            self._write("\n")
        self.stage, self.width = "", 0

    def _write(self, text: str) -> None:
        stream: Any = sys.stderr
        stream.write(text)
        stream.flush()


#: Seconds until a stage is shown, and between two looks at it.
_QUIET, _OFTEN = 1.0, 0.2
_LINE = Line()
