"""When a probe measures: every so many steps, or as often as its share of the training time allows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from tv.errors import InputError

Every = int | Literal["auto"]

#: Measurements of a training run of known length at most, however cheap they are.
_MOST = 200


@dataclass
class Pace:
    """Measures at the first and at the last step, and between them as `every` says.

    `auto` waits until all measurements so far, the next and the last would be `share` of the training time. Two
    measurements are always made, so a training that is over in a minute can cost more.
    """

    every: Every
    share: float = 0.03
    last: int = -1  # the step of the last measurement
    spent: float = 0.0  # seconds in measurements
    price: float = 0.0  # seconds of the last one
    _began: float = field(default_factory=time.perf_counter)
    _before: float = 0.0  # seconds of training before this process

    def __post_init__(self) -> None:
        if self.every != "auto" and (not isinstance(self.every, int) or self.every < 1):
            raise InputError(f'TrainingProbe: every={self.every!r}: give a number of steps from 1 on, or "auto"')
        if not 0 < self.share <= 1:
            raise InputError(f"TrainingProbe: share={self.share!r}: a share of the training time is within (0, 1]")

    def start(self, since: float, trained: float = 0.0, spent: float = 0.0, last: int = -1) -> None:
        """The clock runs since then, after so many seconds of training and of measuring in an earlier process."""
        self._began, self._before, self.spent, self.last = since, trained + spent, spent, last

    @property
    def trained(self) -> float:
        """Seconds of training without measurements."""
        return max(0.0, self._before + time.perf_counter() - self._began - self.spent)

    def due(self, step: int, final: int | None) -> bool:
        """Whether to measure after `step` of `final` steps (None: nobody knows)."""
        if step <= self.last:
            return False
        if final is not None and step >= final:
            return True
        if self.every != "auto":
            return step % self.every == 0
        if final is not None and step - self.last < final // _MOST:
            return False
        return self.spent + 2 * self.price <= self.share * self.trained

    def affords(self, seconds: float) -> bool:
        """Whether something else fits into the share; none is asked for where the user says how often to measure."""
        return self.every != "auto" or self.spent + seconds <= self.share * self.trained

    def paid(self, step: int, seconds: float, more: float, *, usual: float) -> None:
        """A measurement after `step` took so long, and `more` that comes once; the next will take `usual`."""
        self.last, self.spent, self.price = step, self.spent + seconds + more, usual
