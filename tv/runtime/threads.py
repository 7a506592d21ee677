"""How many threads torch computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for as long as the context lasts: several wait for each other longer than a small operation takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of work on items, in their order: as many items at once as torch has threads, one for each.

    Examples:
        >>> list(side_by_side(abs, [-1, 2, -3]))
        [1, 2, 3]
    """
    n = torch.get_num_threads()
    if n == 1:
        yield from map(work, items)
        return
    try:
        with ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, items)
    finally:
        torch.set_num_threads(n)  # what threads of later begin with
