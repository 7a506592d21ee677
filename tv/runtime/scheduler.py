"""Independent pieces of work, done here or shared among workers. The results are the same."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tv.errors import InputError
from tv.runtime.compute import Compute
from tv.runtime.workers import Actors, Crew, Done, Processes, ray_cluster

#: After this many workers died over an item, no other one gets it.
ATTEMPTS = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


def finished(
    items: Sequence[Item],
    work_on: Callable[[str], Callable[[Item], Result]],
    compute: Compute,
    *,
    name: Callable[[Item], str] = str,
    ahead: int | None = None,
    relief: str = "use fewer workers",
) -> Iterator[tuple[Item, Result]]:
    """Every item with its result, as it is finished. Where a worker dies, another one redoes its item.

    Args:
        items: What is worked on.
        work_on: Given a device, the function of an item that computes there; it is pickled for each worker once.
        compute: Who works: this process, several, or actors on a Ray cluster. Each has its share of the threads.
        name: What an item is called where workers keep dying over it.
        ahead: How many items may be started, counted from the oldest unfinished one. None for no limit.
        relief: The advice for a lack of memory.

    Raises:
        InputError: What a worker says is wrong with the input; ray is not installed; `ATTEMPTS` workers died over one
            item.
        RuntimeError: Any other error of a worker, with its traceback.

    Example:
        >>> from tv.runtime.scheduler import finished
        >>> dict(finished([1, 2], lambda device: float, Compute()))
        {1: 1.0, 2: 2.0}
    """
    if not compute.elsewhere:
        work = work_on(compute.device)
        yield from ((item, work(item)) for item in items)
        return
    with team(work_on, compute) as workers:
        yield from workers.finished(items, name=name, ahead=ahead, relief=relief)


def ordered(
    items: Sequence[Item],
    work_on: Callable[[str], Callable[[Item], Result]],
    compute: Compute,
    *,
    name: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """The results of `finished` in the order of the items. Few wait for an older one, however many there are."""

    def work_on_numbered(device: str) -> _Numbered:
        return _Numbered(work_on(device))

    numbered = list(enumerate(items))
    waiting: dict[int, Result] = {}
    following = 0
    ahead = 2 * compute.workers
    for (number, _), result in finished(
        numbered, work_on_numbered, compute, name=lambda item: name(item[1]), ahead=ahead
    ):
        waiting[number] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


class _Numbered:
    """Work on an item that comes with its number."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self.work = work

    def __call__(self, item: tuple[int, Any]) -> Any:
        return self.work(item[1])


@contextmanager
def team(work_on: Callable[[str], Callable[[Any], Any]], compute: Compute) -> Iterator[Team]:
    """Workers that stay for several lists of items: what each has loaded for one is there for the next.

    Args:
        work_on: As in `finished`.
        compute: Who works: several processes, or actors on a Ray cluster.
    """
    if compute.engine == "ray":
        with ray_cluster(compute.workers) as ray, _dismissed(Actors(ray, work_on, compute)) as crew:
            yield Team(crew, compute.workers)
    else:
        with _dismissed(Processes(work_on, compute)) as crew:
            yield Team(crew, compute.workers)


@contextmanager
def _dismissed(crew: Crew) -> Iterator[Crew]:
    try:
        yield crew
    finally:
        crew.dismiss()


class Team:
    """A crew and who of it has nothing to do. A list of items is finished before the next one is begun."""

    def __init__(self, crew: Crew, size: int) -> None:
        self.crew, self.size = crew, size
        self._numbers: dict[Any, int] = {}  # of all that were hired and are not known to be dead
        self._idle: list[Any] = []

    def finished(
        self,
        items: Sequence[Item],
        *,
        name: Callable[[Item], str] = str,
        ahead: int | None = None,
        relief: str = "use fewer workers",
    ) -> Iterator[tuple[Item, Any]]:
        """Every item with its result, as `finished` gives it.

        A new worker gets an item only once it is up: a cluster that just lost a machine may be slow to start it.
        """
        waiting = deque(range(len(items)))
        oldest, ready = 0, set[int]()  # the oldest unfinished item, and the finished ones after it
        deaths = Counter[str]()  # by item; of workers that died before they were up, by number
        busy: dict[Any, int] = {}

        def give() -> None:
            while waiting and self._idle and (ahead is None or waiting[0] < oldest + ahead):
                free = self._idle.pop()
                busy[free] = waiting.popleft()
                self.crew.give(free, items[busy[free]])

        while len(self._numbers) < min(self.size, len(items)):
            self._hire()
        give()
        while oldest < len(items):
            worker, report = self.crew.wait()
            item = busy.pop(worker, None)
            what = f"worker {self._numbers[worker]}" if item is None else name(items[item])
            if isinstance(report, InputError):
                raise report
            if isinstance(report, Exception):
                raise RuntimeError(f"{what}:\n{report}")
            if isinstance(report, Done) and item is not None:
                ready.add(item)
                while oldest in ready:
                    ready.remove(oldest)
                    oldest += 1
            if report == "dead":
                del self._numbers[worker]
                deaths[what] += 1
                if deaths[what] == ATTEMPTS:
                    raise InputError(
                        f"{what}: {ATTEMPTS} processes died over it, one after another; where memory ran out, {relief}"
                    )
                if item is not None:
                    waiting.appendleft(item)
                elif worker in self._idle:
                    self._idle.remove(worker)
                if len(waiting) > len(self._idle):
                    self._hire()
            else:
                self._idle.append(worker)
            give()
            if isinstance(report, Done) and item is not None:
                yield items[item], report.result

    def _hire(self) -> None:
        number = next(i for i in range(self.size) if i not in self._numbers.values())
        self._numbers[self.crew.hire(number)] = number
