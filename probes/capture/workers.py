"""Who runs the shards: this process, several processes, or actors on a Ray cluster. The rows are the same.

A worker loads the pair by itself, writes its shards' files by itself, and hands back their manifest rows. Where one
dies, another runs its shard again. A new worker is given a shard only once it is up: a cluster that just lost a machine
may keep it waiting for long.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import torch

from probes.capture.loading import Pairs
from probes.capture.runner import Shard, run_shard
from probes.errors import RunError
from probes.store.journal import Row
from probes.store.remote import Url, fetch, upload
from tv.errors import InputError
from tv.runtime.compute import Compute
from tv.runtime.workers import ray_cluster, share_of_threads, start_method

#: A shard that this many workers died over is not given to another one.
ATTEMPTS = 3

Told = Callable[[int], None]


def run_shards(
    shards: Sequence[Shard],
    pairs: Pairs,
    directory: Path,
    *,
    compute: Compute = Compute(),
    via: Url | None = None,
    progress: Told | None = None,
) -> Iterator[Row]:
    """The manifest row of every shard, as it is finished; its files are below `directory` then.

    Workers on Ray write to `directory` too, which the machines of a cluster must share, or to `via`, from where files
    are fetched. `progress` is told the number of prompts done. Raises InputError for what a worker found wrong with the
    input, RunError where workers keep dying over one shard, RuntimeError for any other error of theirs.
    """
    workers = compute.workers
    work = Work(pairs, directory, share_of_threads(workers, compute.engine))
    if compute.engine == "ray":
        with ray_cluster(workers) as ray:
            work = Work(pairs, via or directory, work.threads)
            yield from _shared(shards, _Actors(ray, work), workers, directory, progress)
    elif workers > 1:
        yield from _shared(shards, _Processes(work), workers, directory, progress)
    else:
        for shard in shards:
            yield run_shard(shard, pairs.session(shard.tuned), directory, progress)


def require_sources(pairs: Pairs) -> None:
    """Raise InputError, before any work, where other processes could not do it."""
    if pairs.compute.elsewhere and pairs.live:
        raise RunError(
            f"{', '.join(pairs.live)}: a live model cannot be sent to other processes; pass its path, or leave workers "
            "at 1 and the engine local"
        )


@dataclass
class Work:
    """What a worker does with a shard. It is sent to every worker once."""

    pairs: Pairs
    place: Path | Url
    threads: int

    def __call__(self, shard: Shard) -> Row:
        """Run the shard, put its files in place, and return its manifest row (with `files` where they are at a URL)."""
        torch.set_num_threads(self.threads)
        session = self.pairs.session(shard.tuned)
        if isinstance(self.place, Path):
            return run_shard(shard, session, self.place)
        with tempfile.TemporaryDirectory() as directory:
            row = run_shard(shard, session, Path(directory))
            return {**row, "files": upload(Path(directory), self.place)}


class _Crew(Protocol):
    """Workers, each at work on at most one shard."""

    def hire(self, number: int) -> Any:
        """A new worker, which is up when `wait` says so, and may never be."""
        ...

    def give(self, worker: Any, shard: Shard) -> None: ...

    def wait(self) -> tuple[Any, Report]:
        """The next worker that has something to report."""
        ...

    def dismiss(self) -> None: ...


#: A worker is up, or dead, or done with its shard, or found an error in it.
Report: TypeAlias = 'Literal["up", "dead"] | Row | Exception'


def _shared(
    shards: Sequence[Shard], crew: _Crew, workers: int, directory: Path, progress: Told | None
) -> Iterator[Row]:
    waiting, left = deque(shards), len(shards)
    deaths = Counter[str]()  # by shard; of workers that were not up yet, by their number
    numbers: dict[Any, int] = {}
    busy: dict[Any, Shard] = {}
    idle: list[Any] = []
    try:
        for number in range(min(workers, len(shards))):
            numbers[crew.hire(number)] = number
        while left:
            worker, report = crew.wait()
            shard = busy.pop(worker, None)
            if isinstance(report, Exception):
                raise report
            if report == "dead":
                number = numbers.pop(worker)
                what = shard.name if shard else f"worker {number}"
                deaths[what] += 1
                if deaths[what] == ATTEMPTS:
                    raise RunError(
                        f"{what}: {ATTEMPTS} processes died over it, one after another; where memory ran out, use "
                        "fewer --workers or a smaller batch_size"
                    )
                if shard:
                    waiting.appendleft(shard)
                if waiting and not idle:
                    numbers[crew.hire(number)] = number
            else:
                idle.append(worker)
            while waiting and idle:
                free = idle.pop()
                busy[free] = waiting.popleft()
                crew.give(free, busy[free])
            if isinstance(report, dict):
                left -= 1
                fetch(report.pop("files", {}), directory)
                if progress:
                    progress(report["prompts"])
                yield report
    finally:
        crew.dismiss()


class _Processes:
    """Processes of this machine, one GPU each where they compute on GPUs. Each has a pipe of its own, so that none can
    die holding what another one waits for."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.hired: dict[Connection, BaseProcess] = {}

    def hire(self, number: int) -> Connection:
        context = start_method()
        here, there = context.Pipe()
        pairs = self.work.pairs
        if pairs.compute.device == "cuda":
            pairs = pairs.on(f"cuda:{number % torch.cuda.device_count()}")
        work = Work(pairs, self.work.place, self.work.threads)
        self.hired[here] = context.Process(target=_serve, args=(work, there, dict(os.environ)), daemon=True)
        self.hired[here].start()
        there.close()
        return here

    def give(self, worker: Connection, shard: Shard) -> None:
        with suppress(OSError):  # it died; `wait` says so
            worker.send(shard)

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


def _serve(work: Work, parent: Connection, environment: dict[str, str]) -> None:
    """A process's life: a shard in, a row out, until the pipe is closed."""
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    parent.send("up")
    with suppress(EOFError):
        while True:
            parent.send(_tried(work, parent.recv()))


def _tried(work: Work, shard: Shard) -> Row | Exception:
    try:
        return work(shard)
    except InputError as error:
        return error
    except Exception:
        return RuntimeError(f"shard {shard.name}:\n{traceback.format_exc()}")


def _end_with_parent() -> None:
    """A killed run must not go on writing beside the one that takes it up."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Actors:
    """Actors on a Ray cluster, spread over its machines, a GPU each where they compute on GPUs."""

    def __init__(self, ray: Any, work: Work) -> None:
        self.ray, self.work = ray, ray.put(work)
        gpus = 1 if work.pairs.compute.device.startswith("cuda") else 0
        self.actor = ray.remote(_Actor).options(scheduling_strategy="SPREAD", num_gpus=gpus)
        self.calls: dict[Any, Any] = {}
        self.hired: list[Any] = []

    def hire(self, number: int) -> Any:
        worker = self.actor.remote(self.work)
        self.hired.append(worker)
        self.calls[worker.up.remote()] = worker
        return worker

    def give(self, worker: Any, shard: Shard) -> None:
        self.calls[worker.run.remote(shard)] = worker

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
    def __init__(self, work: Work) -> None:
        self.work = work

    def up(self) -> str:
        return "up"

    def run(self, shard: Shard) -> Row | Exception:
        return _tried(self.work, shard)
