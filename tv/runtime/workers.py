"""Independent pieces of work: in this process, in several, or on a Ray cluster. Results come back in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any, TypeVar

import torch

from tv.errors import InputError
from tv.runtime.compute import ENGINES, Engine

#: What every worker imports, and is slow to import.
PRELOADED = ("transformers.modeling_utils", "scipy.stats", "pandas", "pyarrow")

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int = 1, engine: Engine = "local"
) -> Iterator[Result]:
    """`work(item)` for every item, in the items' order; with several workers (or Ray) `work` is pickled to each once.

    A worker computes with its share of this process's threads. Ray joins the cluster that RAY_ADDRESS names, or starts
    one of `workers` processes here. Raises InputError for an unknown engine, fewer than one worker, or a missing ray.
    """
    threads = share_of_threads(workers, engine)
    if engine == "ray":
        yield from _on_ray(work, items, workers, threads)
    elif workers > 1:
        with ProcessPoolExecutor(workers, start_method(), _set_up, (work, threads, dict(os.environ))) as pool:
            yield from pool.map(_do, items)
    else:
        yield from map(work, items)


def start_method() -> ForkServerContext | SpawnContext:
    """How worker processes start: out of a server that has imported what they need once, where the system has that.

    The server keeps the environment that it started in, so that workers are told of this process's.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    return context


def share_of_threads(workers: int, engine: str) -> int:
    """Threads a worker computes with. Raises InputError for an unknown engine and for fewer than one worker."""
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r}: there is no such engine; use {' or '.join(ENGINES)}")
    if workers < 1:
        raise InputError(f"{workers} workers: at least one has to do the work")
    return max(1, torch.get_num_threads() // workers)


_work: Callable[[Any], Any] | None = None


def _set_up(work: Callable[[Any], Any], threads: int, environment: dict[str, str]) -> None:
    global _work
    os.environ.update(environment)
    torch.set_num_threads(threads)
    _work = work


def _do(item: Any) -> Any:
    assert _work is not None
    return _work(item)


@contextmanager
def ray_cluster(workers: int) -> Iterator[Any]:
    """Ray, joined: as it is where this process has joined a cluster before, else the one that RAY_ADDRESS names, or one
    of `workers` processes here; what was joined is left again. Raises InputError where ray is not installed."""
    try:
        import ray
    except ImportError:
        raise InputError("engine 'ray': ray is not installed; install tuning-probes[ray]") from None
    joined = ray.is_initialized()
    if not joined:
        # Without an address Ray would join whatever cluster somebody else has started on this machine.
        alone = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        local = {} if os.environ.get("RAY_ADDRESS") else alone
        ray.init(log_to_driver=False, configure_logging=False, **local)
    try:
        yield ray
    finally:
        if not joined:
            ray.shutdown()


def _on_ray(work: Callable[[Any], Any], items: Sequence[Any], workers: int, threads: int) -> Iterator[Any]:
    def perform(work: Callable[[Any], Any], item: Any) -> Any:
        torch.set_num_threads(threads)
        return work(item)

    with ray_cluster(workers) as ray:
        remote, shared = ray.remote(perform), ray.put(work)
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(remote.remote(shared, item))
                if len(waiting) > 2 * workers:  # results stay few, however many items there are
                    yield ray.get(waiting.popleft())
            while waiting:
                yield ray.get(waiting.popleft())
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, InputError) else error) from None
