"""What is imported lasts: the garbage collector need not look through it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Collect no garbage while torch is imported, and leave what there is by then out of later collections.

    Importing it makes some hundred thousand objects that stay. The collector looks through them several times
    meanwhile, again while a command works and once more at the end, which takes a small command a third of its time.
    Where torch is there already nothing is changed: a tensor may be garbage by then.

    Examples:
        >>> import torch
        >>> before = gc.get_freeze_count()
        >>> with lasting():
        ...     import tv.measures.cosine
        >>> gc.get_freeze_count() == before
        True
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if "torch" in sys.modules:
            gc.freeze()
        gc.enable()
