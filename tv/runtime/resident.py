"""Memory that a process holds and does not need for a while, given back to a system that takes it (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

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
        tensors: Any, one after another as they were used; those that no file backs, whose memory would go to a swap
            device, are left alone.

    Examples:
        >>> import torch
        >>> page_out([torch.ones(3)])
    """
    if sys.platform != "linux":
        return
    files, advise = _mapped_files(), ctypes.CDLL(None).madvise
    starts, page = [start for start, _ in files], mmap.PAGESIZE
    for tensor in tensors:
        if tensor.device.type != "cpu":
            continue
        first = tensor.data_ptr()
        end = first + tensor.nbytes
        at = bisect_right(starts, first) - 1
        if at < 0 or end > files[at][1]:
            continue
        begin = -(-first // page) * page
        if end - begin >= page:
            advise(ctypes.c_void_p(begin), ctypes.c_size_t((end - begin) // page * page), ctypes.c_int(_PAGEOUT))


def _mapped_files() -> list[tuple[int, int]]:
    """Where files are mapped, by address."""
    lines = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
    ranges = (line[0].split("-") for line in lines if len(line) > 4 and line[4] != "0")
    return sorted((int(start, 16), int(end, 16)) for start, end in ranges)
