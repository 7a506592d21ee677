"""Memory that a process holds and does not need for a while, given back to a system that takes it (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Of <linux/mman.h>, Linux 5.4 and later: these pages are not needed soon. Nothing is lost.
_PAGEOUT = 21


def trim() -> None:
    """What was freed leaves the process: glibc keeps most of it for itself.

    Examples:
        >>> trim()
    """
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if give_back is not None:
        give_back(0)


def page_out(tensors: Iterable[Tensor]) -> None:
    """Pages of files that tensors are mapped from leave memory, and are read again where they are needed.

    Args:
        tensors: Any; those that no file backs, whose memory would go to a swap device, are left alone.

    Examples:
        >>> import torch
        >>> page_out([torch.ones(3)])
    """
    leave = Pages().leave
    for tensor in tensors:
        leave(tensor)


class Pages:
    """The files that are mapped now; what is asked of many tensors reads where they are once.

    Examples:
        >>> import torch
        >>> Pages().leave(torch.ones(3))
    """

    def __init__(self) -> None:
        on_linux = sys.platform == "linux"
        self._files = _mapped_files() if on_linux else []
        self._starts = [start for start, _ in self._files]
        self._advise = ctypes.CDLL(None).madvise if on_linux else None

    def leave(self, tensor: Tensor) -> None:
        """A tensor's pages leave memory."""
        if self._advise is None or tensor.device.type != "cpu":
            return
        first, page = tensor.data_ptr(), mmap.PAGESIZE
        end = first + tensor.nbytes
        at = bisect_right(self._starts, first) - 1
        if at < 0 or end > self._files[at][1]:
            return
        begin = -(-first // page) * page
        if end - begin >= page:
            size = ctypes.c_size_t((end - begin) // page * page)
            self._advise(ctypes.c_void_p(begin), size, ctypes.c_int(_PAGEOUT))


def _mapped_files() -> list[tuple[int, int]]:
    """Where files are mapped, by address."""
    lines = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
    ranges = (line[0].split("-") for line in lines if len(line) > 4 and line[4] != "0")
    return sorted((int(start, 16), int(end, 16)) for start, end in ranges)
