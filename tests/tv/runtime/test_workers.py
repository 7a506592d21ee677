"""The same results, in order, whatever does the work."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch

import tv
from tests.pairs import build_pair
from tv.errors import CheckpointError, InputError
from tv.runtime.workers import ordered, ray_cluster


@dataclass(frozen=True)
class Power:
    """A picklable piece of work; item 0 is bad input."""

    exponent: int

    def __call__(self, item: int) -> tuple[int, int, int]:
        if item == 0:
            raise CheckpointError("item 0: no such thing; leave it out")
        return item**self.exponent, os.getpid(), torch.get_num_threads()


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A Ray cluster that this process has joined: starting one takes longer than all the work on it."""
    pytest.importorskip("ray", reason="ray is not installed")
    with ray_cluster(2) as ray:
        yield ray


@pytest.mark.parametrize(("workers", "engine"), [(1, "local"), (2, "local")])
def test_results_come_in_order_from_elsewhere(workers: int, engine: str) -> None:
    found = list(ordered(Power(3), range(1, 30), workers=workers, engine=engine))
    assert [value for value, _, _ in found] == [i**3 for i in range(1, 30)]
    here = {pid == os.getpid() for _, pid, _ in found}
    assert here == {workers == 1}
    assert {threads for _, _, threads in found} == {max(1, torch.get_num_threads() // workers)}


@pytest.mark.parametrize(("workers", "engine"), [(1, "local"), (2, "local")])
def test_bad_input_found_elsewhere_is_still_one_line(workers: int, engine: str) -> None:
    with pytest.raises(CheckpointError, match=r"^item 0: no such thing; leave it out$"):
        list(ordered(Power(2), [1, 2, 0, 3], workers=workers, engine=engine))


@pytest.mark.slow
def test_ray_does_the_same(cluster: object, tmp_path: Path) -> None:
    test_results_come_in_order_from_elsewhere(2, "ray")
    test_bad_input_found_elsewhere_is_still_one_line(2, "ray")
    _require_same_tables(tmp_path, engine="ray")


def test_processes_measure_the_same_tables(tmp_path: Path) -> None:
    _require_same_tables(tmp_path, engine="local")


def _require_same_tables(directory: Path, **how: object) -> None:
    pair = build_pair(directory, "llama")
    names = ("weights", "alignment")
    here, elsewhere = tv.measured(*pair, names), tv.measured(*pair, names, compute=tv.Compute(workers=2, **how))
    for name in names:
        pd.testing.assert_frame_equal(here[name], elsewhere[name], check_exact=True)


def test_workers_have_the_environment_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long ago the server that they come from was started."""
    list(ordered(os.getenv, ["HOME"], workers=2))
    monkeypatch.setenv("TUNING_PROBES_TOLD", "yes")
    assert list(ordered(os.getenv, ["TUNING_PROBES_TOLD"], workers=2)) == ["yes"]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InputError, match="engine 'spark'"):
        list(ordered(Power(1), [1], engine="spark"))
    with pytest.raises(InputError, match="0 workers"):
        list(ordered(Power(1), [1], workers=0))
