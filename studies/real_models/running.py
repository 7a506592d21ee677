"""Stages one after another, each in a process of its own: what is done is kept, what was measured is written down."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from studies.real_models.stage import Stage
from tv.errors import InputError
from tv.runtime.atomic import replacing
from tv.runtime.progress import duration

#: CPU seconds of a trial on the machine that the stages' costs were measured on.
TRIAL = 1.0


@dataclass(frozen=True)
class Done:
    """What a stage took, beside what was expected."""

    stage: str
    cpu_estimate: float
    cpu: float
    wall: float
    memory_estimate: float
    memory: float
    disk_estimate: float
    disk: float
    restarts: int


def pace() -> float:
    """How much slower this machine multiplies than the one that the costs were measured on; 1 where it is as fast."""
    import torch  # a stage's process need not load it

    torch.manual_seed(0)
    a, b = torch.randn(256, 576), torch.randn(576, 1536)
    for _ in range(20):
        a @ b
    start, n = time.process_time(), 200
    for _ in range(n):
        a @ b
    return (time.process_time() - start) / TRIAL


class Journal:
    """One line a stage that was begun or done, in the folder of the work."""

    def __init__(self, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._path = work / "journal.jsonl"

    def done(self) -> dict[str, Done]:
        """The stages that are done, by name."""
        return {row["stage"]: Done(**row) for row in self._rows() if "cpu" in row}

    def begins(self, stage: str) -> int:
        """How many times the stage was begun before."""
        return sum(row["stage"] == stage and "cpu" not in row for row in self._rows())

    def write(self, row: Mapping[str, Any]) -> None:
        """One line, at once."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _rows(self) -> list[dict[str, Any]]:
        """A line that a killed process left half-written is no line."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line.endswith("}")]


def claim(work: Path, settings: Mapping[str, Any]) -> None:
    """Keep in the folder of the work what it is done with.

    Raises:
        InputError: where the folder holds work that was done with other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    path, said = work / "settings.json", json.dumps(settings, indent=2, sort_keys=True)
    if path.exists() and path.read_text(encoding="utf-8") != said:
        raise InputError(f"{work}: holds a study of another size or other texts ({path.name}); pass another --work")
    with replacing(path, InputError) as file:
        file.write_text(said, encoding="utf-8")


def run(stages: Sequence[Stage], work: Path, pace: float, jobs: int, say: Callable[[str], None]) -> list[Done]:
    """Do what is not done yet, `jobs` stages at once where none waits for another and memory is enough for them.

    Raises:
        InputError: once no stage is left that could be done, where some failed.
    """
    journal, failed = Journal(work), list[str]()
    done = journal.done()
    left = [stage for stage in stages if stage.name not in done or not stage.out.exists()]
    say(f"{len(left)} of {len(stages)} stages to do, {duration(sum(stage.cpu for stage in left) * pace)} of CPU time")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))  # of every stage's process
    memory, doing = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20, dict[Future[Done | None], Stage]()
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            undone = {stage.name for stage in left}
            begun = [stage.name for stage in doing.values()]
            for stage in left:
                fits = not doing or sum(one.memory for one in (stage, *doing.values())) < memory
                free = stage.name not in (*failed, *begun) and undone.isdisjoint(stage.needs)
                if free and fits and len(doing) < jobs:
                    doing[pool.submit(_done, stage, journal, pace)] = stage
            if not doing:
                break
            for future in wait(doing, return_when=FIRST_COMPLETED).done:
                stage, row = doing.pop(future), future.result()
                if row is None:
                    failed.append(stage.name)
                    say(f"{stage.name}: failed; its message is in {work / 'logs' / stage.name}.txt")
                else:
                    left.remove(stage)
                    say(f"{stage.name}: {duration(row.cpu)} of CPU time, {row.cpu_estimate:.0f} s expected")
    if failed:
        raise InputError(f"{len(failed)} stages failed: {', '.join(failed)}; mend what they say and start again")
    done = journal.done()
    return [done[stage.name] for stage in stages]


def _done(stage: Stage, journal: Journal, pace: float) -> Done | None:
    """Do one stage in a child process; None where it fails."""
    restarts = journal.begins(stage.name)
    journal.write({"stage": stage.name, "begun": time.time()})
    stage.out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    log = journal._path.parent / "logs" / f"{stage.name}.txt"
    start = time.monotonic()
    child = context.Process(target=_child, args=(stage.work, log, answer))
    child.start()
    child.join()
    if child.exitcode or answer.empty():
        return None
    cpu, memory = answer.get()
    row = Done(
        stage.name, stage.cpu * pace, cpu, time.monotonic() - start, stage.memory, memory, stage.disk,
        sum(map(_size, (stage.out, *stage.beside))), restarts,
    )  # fmt: skip
    journal.write(asdict(row))
    return row


def _child(work: Callable[[], object], log: Path, answer: multiprocessing.SimpleQueue) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            work()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    answer.put((sum(u.ru_utime + u.ru_stime for u in used), max(u.ru_maxrss for u in used) / 1024))


def _size(path: Path) -> float:
    """MiB of a file or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20
