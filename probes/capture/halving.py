"""Batches that fit: one that runs out of memory is run again in halves, and so are the batches after it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from probes.capture.hooks.turns import one_by_one
from probes.errors import ActivationError
from tv.errors import first_line
from tv.prompts.encoding import Batch, Encoded, batches
from tv.runtime.memory import is_out_of_memory

Result = TypeVar("Result")


def within_memory(
    encoded: Sequence[Encoded],
    size: int,
    pad_id: int,
    run: Callable[[Batch], Result],
    together: Callable[[Sequence[Callable[[], Result]]], Iterator[Result]] = one_by_one,
) -> Iterator[tuple[Batch, Result]]:
    """`run` over batches of `size` prompts, or of fewer from where memory ran out; every prompt once.

    `together` runs the batches and gives their results in order. Logs every halving. Raises ActivationError where one
    prompt alone is too much.
    """
    waiting = deque(batches(encoded, size, pad_id))
    results = together([partial(run, batch) for batch in waiting])
    while waiting:
        batch = waiting[0]
        try:
            result = next(results)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
        else:
            yield waiting.popleft(), result
            del result
            continue
        # Here and not above: the exception still held the tensors of the failed forward.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        n = len(batch.encoded)
        if n == 1:
            item = batch.encoded[0]
            raise ActivationError(
                f"out of memory on prompt {item.prompt.id!r} alone, with {len(item.ids)} tokens ({reason}); "
                "shorten it, or measure at fewer positions"
            )
        logging.getLogger(__name__).warning("out of memory on %d prompts at once; going on with %d", n, n // 2)
        left = [item for later in waiting for item in later.encoded]
        waiting = deque(batches(left, n // 2, pad_id))
        results = together([partial(run, batch) for batch in waiting])
