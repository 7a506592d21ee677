"""The same results, in order, whatever does the work."""

import os
from dataclasses import dataclass

import pytest
import torch

from tv.engine import ordered
from tv.errors import CheckpointError, InputError


@dataclass(frozen=True)
class Power:
    """A picklable piece of work; item 0 is bad input."""

    exponent: int

    def __call__(self, item: int) -> tuple[int, int, int]:
        if item == 0:
            raise CheckpointError("item 0: no such thing; leave it out")
        return item**self.exponent, os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize(("workers", "engine"), [(1, "local"), (2, "local"), (2, "ray")])
def test_results_come_in_order_from_elsewhere(workers: int, engine: str) -> None:
    found = list(ordered(Power(3), range(1, 30), workers=workers, engine=engine))
    assert [value for value, _, _ in found] == [i**3 for i in range(1, 30)]
    here = {pid == os.getpid() for _, pid, _ in found}
    assert here == {workers == 1}
    assert {threads for _, _, threads in found} == {max(1, torch.get_num_threads() // workers)}


@pytest.mark.parametrize(("workers", "engine"), [(1, "local"), (2, "local"), (2, "ray")])
def test_bad_input_found_elsewhere_is_still_one_line(workers: int, engine: str) -> None:
    with pytest.raises(CheckpointError, match=r"^item 0: no such thing; leave it out$"):
        list(ordered(Power(2), [1, 2, 0, 3], workers=workers, engine=engine))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InputError, match="engine 'spark'"):
        list(ordered(Power(1), [1], engine="spark"))
    with pytest.raises(InputError, match="0 workers"):
        list(ordered(Power(1), [1], workers=0))
