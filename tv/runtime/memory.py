"""How much memory this process can still take, and which errors say that it was too little."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from tv.errors import LackOfMemory, first_line

try:
    import resource
except ImportError:  # not on every system
    resource = None  # type: ignore[assignment]

_CGROUP = Path("/sys/fs/cgroup")
#: Messages that mean out of memory where no class of exception does: torch's on a host, cuBLAS's, the system's.
_SAYS = ("DefaultCPUAllocator", "can't allocate memory", "Cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
#: What to do about it.
RELIEF = "close other programs, pass a smaller --dtype or --stream where the command has them, or take more memory"


def free_memory() -> int:
    """Bytes that this process can take: of the machine, of its container, and of its own limits.

    Examples:
        >>> free_memory() > 2**20
        True
    """
    return min(_limits())


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: on the host or on a GPU, in Python, torch or the system.

    Examples:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("too long"))
        (True, False)
    """
    # By its name: nothing waits for torch to ask this of another library's error.
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return known or system or any(words in str(error) for words in _SAYS)


def require_memory(error: Exception, what: str, relief: str) -> None:
    """Raise LackOfMemory where an error says that memory ran out: `what` needs it, and `relief` is what to do."""
    if is_out_of_memory(error):
        raise LackOfMemory(f"{what}: out of memory ({first_line(error)}); {relief}") from error


def _limits() -> Iterator[int]:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        yield int(fields["MemAvailable"].split()[0]) * 1024
    else:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        most, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())["file"]
        if most != "max":
            yield int(most) - int(used) + int(cached)
    except (OSError, KeyError, ValueError):  # no container, or one of an older kind
        pass
    if resource is not None:
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            soft, _ = resource.getrlimit(kind)
            if soft != resource.RLIM_INFINITY:
                yield soft
