"""Work for tests of workers, in a file of its own: a process that does it imports no more than this."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch

from tv.errors import CheckpointError


@dataclass(frozen=True)
class Power:
    """A picklable piece of work; item 0 is bad input, and item 13 kills who does it for the first time."""

    exponent: int
    killed: Path | None = None

    def __call__(self, item: int) -> tuple[int, int, int]:
        if item == 0:
            raise CheckpointError("item 0: no such thing; leave it out")
        if item == -1:
            raise ZeroDivisionError("here")
        if item == 13 and self.killed is not None and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item**self.exponent, os.getpid(), torch.get_num_threads()
