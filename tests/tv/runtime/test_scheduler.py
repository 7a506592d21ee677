"""The same results whatever does the work, in order or as they are finished; no item is lost with its worker."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import tv
from tests.pairs import build_pair
from tests.tv.runtime.power import Power
from tv.errors import CheckpointError, InputError
from tv.runtime import scheduler, workers
from tv.runtime.compute import Compute
from tv.runtime.scheduler import ATTEMPTS, finished, ordered
from tv.runtime.workers import Done, ray_cluster


def always(work: Any) -> Callable[[str], Any]:
    """The same work on every device."""
    return lambda device: work


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A Ray cluster that this process has joined: starting one takes longer than all the work on it."""
    pytest.importorskip("ray", reason="ray is not installed")
    with ray_cluster(1) as ray:
        yield ray


def test_results_come_in_order_from_here() -> None:
    _require_order(Compute())


def test_results_come_in_order_from_elsewhere_though_a_worker_is_killed(tmp_path: Path) -> None:
    _require_order(Compute(workers=2), tmp_path / "killed")
    assert (tmp_path / "killed").exists() and not multiprocessing.active_children()


def _require_order(compute: Compute, killed: Path | None = None) -> None:
    given = list(ordered(range(1, 30), always(Power(3, killed)), compute))
    assert [value for value, _, _ in given] == [i**3 for i in range(1, 30)]
    assert {pid == os.getpid() for _, pid, _ in given} == {not compute.elsewhere}
    assert {threads for _, _, threads in given} == {max(1, torch.get_num_threads() // compute.workers)}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_goes_wrong_elsewhere_comes_back(workers: int) -> None:
    """Bad input as its one line; a mistake of ours with the item's name and where it happened."""
    _require_errors(Compute(workers=workers))
    assert not multiprocessing.active_children()


def _require_errors(compute: Compute) -> None:
    with pytest.raises(CheckpointError, match=r"^item 0: no such thing; leave it out$"):
        list(ordered([1, 2, 0, 3], always(Power(2)), compute))
    with pytest.raises(Exception, match="here") as caught:
        list(finished([-1], always(Power(2)), compute, name=lambda item: f"the item {item}"))
    if compute.elsewhere:
        assert caught.type is RuntimeError and str(caught.value).startswith("the item -1:\nTraceback")
    else:
        assert caught.type is ZeroDivisionError


@pytest.mark.slow
def test_ray_does_the_same(cluster: object, tmp_path: Path) -> None:
    """Its process dies over the second item, and another takes its place."""
    compute = Compute(engine="ray")
    results = ordered([3, 13, 0], always(Power(2, tmp_path / "killed")), compute)
    (value, pid, threads), (again, other, _) = next(results), next(results)
    assert (value, again) == (9, 169) and threads == torch.get_num_threads()
    assert (tmp_path / "killed").exists() and len({pid, other, os.getpid()}) == 3
    with pytest.raises(CheckpointError, match=r"^item 0: no such thing; leave it out$"):
        next(results)


@pytest.mark.thorough
def test_ray_measures_the_same_tables(cluster: object, tmp_path: Path) -> None:
    _require_same_tables(tmp_path, Compute(engine="ray"))


def test_processes_measure_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is killed in the middle of its module, and another takes its place."""
    wait, reports = workers.Processes.wait, list[Any]()

    def told(self: workers.Processes) -> Any:
        worker, report = wait(self)
        if len(reports) == 3:
            multiprocessing.active_children()[0].kill()
        reports.append(report)
        return worker, report

    monkeypatch.setattr(workers.Processes, "wait", told)
    _require_same_tables(tmp_path, Compute(workers=2))
    assert reports.count("dead") == 1


def _require_same_tables(directory: Path, compute: Compute) -> None:
    pair = build_pair(directory, "llama")
    names = ("weights", "alignment")
    here, elsewhere = tv.measured(*pair, names), tv.measured(*pair, names, compute=compute)
    for name in names:
        pd.testing.assert_frame_equal(here[name], elsewhere[name], check_exact=True)


def test_workers_have_the_environment_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long ago the server that they come from was started."""
    list(ordered(["HOME"], always(os.getenv), Compute(workers=2)))
    monkeypatch.setenv("TUNING_PROBES_TOLD", "yes")
    assert list(ordered(["TUNING_PROBES_TOLD"], always(os.getenv), Compute(workers=2))) == ["yes"]


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked: list[str] = []
    monkeypatch.setattr(workers, "start_method", lambda: multiprocessing.get_context("fork"))
    compute = Compute(workers=3)
    object.__setattr__(compute, "device", "cuda")
    crew = workers.Processes(lambda device: asked.append(device) or str, compute)
    for number in range(3):
        crew.hire(number)
    crew.dismiss()
    assert asked == ["cuda:0", "cuda:1", "cuda:0"]


class Mortal:
    """Workers that die over the items named, as often as they are named; those of some numbers never come up."""

    def __init__(self, deadly: list[int], absent: tuple[int, ...] = ()) -> None:
        self.deadly, self.absent = deadly, absent
        self.reports, self.hired, self.dismissed = deque[tuple[int, Any]](), 0, False
        self.given: list[int] = []

    def hire(self, number: int) -> int:
        self.hired += 1
        if self.hired not in self.absent:
            self.reports.append((self.hired, "up"))
        return self.hired

    def give(self, worker: int, item: int) -> None:
        self.given.append(item)
        report: Any = Done(item * 10)
        if item in self.deadly:
            self.deadly.remove(item)
            report = "dead"
        self.reports.append((worker, report))

    def wait(self) -> tuple[int, Any]:
        return self.reports.popleft()

    def dismiss(self) -> None:
        self.dismissed = True


def _shared(crew: Mortal, ahead: int | None = None) -> list[tuple[int, int]]:
    with scheduler._dismissed(crew):
        team = scheduler.Team(crew, 2)
        return list(team.finished(range(5), name=lambda item: f"item {item}", ahead=ahead, relief="use less"))


@pytest.mark.parametrize("ahead", [None, 1, 2])
def test_a_dead_workers_item_is_given_to_another_but_not_for_ever(ahead: int | None) -> None:
    for crew in (Mortal([0, 4, 4]), Mortal([2], absent=(2,)), Mortal([0, 1, 0, 1])):
        assert sorted(_shared(crew, ahead)) == [(item, item * 10) for item in range(5)]
        assert crew.dismissed and not crew.deadly
    crew = Mortal([3] * ATTEMPTS)
    with pytest.raises(InputError, match=r"^item 3: 3 processes died over it, .*; where memory ran out, use less$"):
        _shared(crew, ahead)
    assert crew.dismissed


def test_a_worker_that_dies_idle_is_given_nothing_more() -> None:
    """The second one has to wait, because the first item is not finished, and is killed meanwhile."""

    class Killed(Mortal):
        def give(self, worker: int, item: int) -> None:
            super().give(worker, item)
            if item == 0:
                self.late = self.reports.pop()
            if item == 1:
                self.reports += [(worker, "dead"), self.late]

    crew = Killed([])
    assert sorted(_shared(crew, ahead=2)) == [(item, item * 10) for item in range(5)]
    assert crew.hired == 3


def test_no_item_is_begun_far_ahead_of_an_unfinished_one() -> None:
    """The first item takes its worker for ever, so the other worker comes no further than the limit."""

    class Slow(Mortal):
        def give(self, worker: int, item: int) -> None:
            super().give(worker, item)
            if item == 0:
                self.reports.pop()

    crew = Slow([])
    with pytest.raises(IndexError):  # nobody has anything to report any more
        _shared(crew, ahead=3)
    assert crew.given == [0, 1, 2] and crew.dismissed
