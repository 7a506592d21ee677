"""The workers that share the work: processes on this machine, or actors on a Ray cluster."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Protocol, TypeAlias

import torch

from tv.errors import InputError, LackOfMemory, first_line
from tv.runtime.compute import Compute
from tv.runtime.memory import RELIEF, is_out_of_memory

#: Slow imports that every worker needs.
PRELOADED = ("transformers.modeling_utils", "scipy.stats", "pandas", "pyarrow")

Work: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class Done:
    """A worker's result for its item."""

    result: Any


#: A worker is up, or dead, or done with its item, or failed on it.
Report: TypeAlias = 'Literal["up", "dead"] | Done | Exception'


class Crew(Protocol):
    """Workers, each at work on at most one item."""

    def hire(self, number: int) -> Any:
        """A new worker. It is up once `wait` says so, which may never happen."""
        ...

    def give(self, worker: Any, item: Any) -> None: ...

    def wait(self) -> tuple[Any, Report]:
        """The next worker that has something to report."""
        ...

    def dismiss(self) -> None: ...


class Processes:
    """Processes on this machine, a GPU each where they compute on GPUs. Each has a separate pipe, so that none can die
    holding what another one waits for."""

    def __init__(self, work_on: Callable[[str], Work], compute: Compute) -> None:
        self.work_on, self.compute = work_on, compute
        self.hired: dict[Connection, BaseProcess] = {}

    def hire(self, number: int) -> Connection:
        context = start_method()
        here, there = context.Pipe()
        several = self.compute.device == "cuda"
        work = self.work_on(f"cuda:{number % torch.cuda.device_count()}" if several else self.compute.device)
        args = (work, share_of_threads(self.compute), there, dict(os.environ))
        self.hired[here] = context.Process(target=_serve, args=args, daemon=True)
        self.hired[here].start()
        there.close()
        return here

    def give(self, worker: Connection, item: Any) -> None:
        with suppress(OSError):  # it died; `wait` says so
            worker.send(item)

    def wait(self) -> tuple[Connection, Report]:
        (worker, *_) = connection.wait(list(self.hired))
        assert isinstance(worker, Connection)
        try:
            report: Report = worker.recv()
            return worker, report
        except (EOFError, OSError):
            self._let_go(worker)
            return worker, "dead"

    def dismiss(self) -> None:
        for worker in list(self.hired):
            self._let_go(worker)

    def _let_go(self, worker: Connection) -> None:
        process = self.hired.pop(worker)
        worker.close()
        process.terminate()
        process.join()


def start_method() -> ForkServerContext | SpawnContext:
    """How worker processes start: forked from a server that has imported what they need, where the system has one.

    The server keeps the environment that it started in, so workers are sent this process's.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    return context


def share_of_threads(compute: Compute) -> int:
    """Threads that a worker computes with."""
    return max(1, torch.get_num_threads() // compute.workers)


def _serve(work: Work, threads: int, parent: Connection, environment: dict[str, str]) -> None:
    """A worker process: an item in, a report out, until the pipe is closed."""
    os.environ.update(environment)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    parent.send("up")
    with suppress(EOFError):
        while True:
            parent.send(_tried(work, parent.recv()))


def _tried(work: Work, item: Any) -> Done | Exception:
    try:
        return Done(work(item))
    except InputError as error:
        return error
    except Exception as error:
        if is_out_of_memory(error):
            return LackOfMemory(f"a worker ran out of memory ({first_line(error)}); use fewer workers, or {RELIEF}")
        return RuntimeError(traceback.format_exc())


def _end_with_parent() -> None:
    """End this process with its parent: workers of a killed run must not keep writing beside those of the next."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Actors:
    """Actors on a Ray cluster, spread over its machines, a GPU each where they compute on GPUs."""

    def __init__(self, ray: Any, work_on: Callable[[str], Work], compute: Compute) -> None:
        self.ray, self.work = ray, ray.put(work_on(compute.device))
        self.threads = share_of_threads(compute)
        gpus = 1 if compute.device.startswith("cuda") else 0
        self.actor = ray.remote(_Actor).options(scheduling_strategy="SPREAD", num_gpus=gpus)
        self.calls: dict[Any, Any] = {}
        self.hired: list[Any] = []

    def hire(self, number: int) -> Any:
        worker = self.actor.remote(self.work, self.threads)
        self.hired.append(worker)
        self.calls[worker.up.remote()] = worker
        return worker

    def give(self, worker: Any, item: Any) -> None:
        self.calls[worker.run.remote(item)] = worker

    def wait(self) -> tuple[Any, Report]:
        (call, *_), _ = self.ray.wait(list(self.calls))
        worker = self.calls.pop(call)
        try:
            report: Report = self.ray.get(call)
            return worker, report
        except self.ray.exceptions.RayActorError:  # it died, or its machine did
            return worker, "dead"

    def dismiss(self) -> None:
        for worker in self.hired:
            self.ray.kill(worker)


class _Actor:
    def __init__(self, work: Work, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = work

    def up(self) -> str:
        return "up"

    def run(self, item: Any) -> Done | Exception:
        return _tried(self.work, item)


@contextmanager
def ray_cluster(workers: int) -> Iterator[Any]:
    """Ray, connected: this process's existing connection, else one to the cluster that RAY_ADDRESS names, or to a new
    one of `workers` processes here. A connection made here is closed again. Raises InputError where ray is not
    installed."""
    try:
        import ray
    except ImportError:
        raise InputError("engine 'ray': ray is not installed; install tuning-probes[ray]") from None
    joined = ray.is_initialized()
    if not joined:
        # Without an address Ray would join any cluster already running on this machine.
        alone = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        local = {} if os.environ.get("RAY_ADDRESS") else alone
        ray.init(log_to_driver=False, configure_logging=False, **local)
    try:
        yield ray
    finally:
        if not joined:
            ray.shutdown()
