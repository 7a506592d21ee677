"""Rules on the numbers of a run, each with the smallest effect that matters: pass, fail, or cannot tell."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """`probes.gate` is a function to its users, and this package to Python once a file of it is imported."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        from probes.gate.verdicts import gate

        return gate(*given, **named)


sys.modules[__name__].__class__ = _Room
