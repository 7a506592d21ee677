"""Work in a forked child: what it does to itself (a kill, no network) ends with it, and imports cost nothing."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

import probes
import tv

_SECONDS = 120  # after which a child is taken to hang
_LOADED = [getattr(package, name) for package in (tv, probes) for name in package.__all__]  # else each child would


class Ended(NamedTuple):
    """How a child ended: its exit status, or minus the signal that killed it, and what it printed."""

    status: int
    out: str
    err: str


def forked(work: Callable[[], object], *, memory: int | None = None) -> Ended:
    """Call `work` in a child, which may map `memory` bytes more than this process."""
    (out, into_out), (err, into_err) = os.pipe(), os.pipe()  # no files: a child may be denied these
    pid = os.fork()
    if not pid:
        os._exit(_child(work, into_out, into_err, memory))
    os.close(into_out)
    os.close(into_err)
    with ThreadPoolExecutor(2) as readers:
        texts = list(readers.map(_read_all, (out, err)))
    return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), *texts)


def kill_me(seconds: float) -> None:
    """SIGKILL this process after so many seconds, from a process of its own, which no lock in this one can hold up."""
    parent = os.getpid()
    if os.fork():
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.closerange(0, 1024)  # whoever reads the parent's pipes waits for every copy of them
    time.sleep(seconds)
    if os.getppid() == parent:
        os.kill(parent, signal.SIGKILL)
    os._exit(0)


def _read_all(descriptor: int) -> str:
    with open(descriptor, "rb") as stream:
        return stream.read().decode(errors="replace")


def command(main: Callable[[], None], *arguments: object) -> Callable[[], None]:
    """`main` as a shell would call it with these arguments."""

    def call() -> None:
        sys.argv = ["command", *map(str, arguments)]
        main()

    return call


def tree(directory: Path) -> dict[str, str]:
    """Every path below a directory, and what it holds: a hash, or where a link leads."""
    found = {}
    for path in directory.rglob("*"):
        if path.is_symlink():
            value = os.readlink(path)
        else:
            value = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        found[str(path.relative_to(directory))] = value
    return found


def _child(work: Callable[[], object], out: int, err: int, memory: int | None) -> int:
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    if memory is not None:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
    # Mends torch's thread pool after the fork, before threads that load weights would do so at once and get in each
    # other's way ("Invalid thread pool!").
    torch.set_num_threads(torch.get_num_threads())
    code = 0
    try:
        work()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
