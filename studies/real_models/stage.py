"""One piece of the study's work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """One piece of work, done by a process of its own and never twice.

    Args:
        name: unique in the study.
        work: what is done.
        cpu: estimated CPU seconds on a machine that computes at pace 1.
        memory: estimated peak, MiB.
        disk: estimated, MiB.
        needs: names of stages that come before.
        out: what is there once it is done.
        beside: what else it writes and leaves there.
    """

    name: str
    work: Callable[[], object]
    cpu: float
    memory: float
    disk: float
    out: Path
    needs: tuple[str, ...] = ()
    beside: tuple[Path, ...] = ()
