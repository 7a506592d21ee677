"""An attribution's tasks on other processes: each loads the pair once, and does whatever it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from probes.attribution.finding import Finding
from probes.attribution.metric import metric_of
from probes.attribution.work import Task, Work
from probes.capture.loading import Pairs
from tv.prompts.encoding import Encoded, batches
from tv.runtime.scheduler import Team, team


@contextmanager
def helped(work: Work, pairs: Pairs, tuned: str) -> Iterator[Team | None]:
    """The workers that do a work's tasks while this lasts; None where this process does them.

    Args:
        work: What each of them makes for itself.
        pairs: Where they load the models from.
        tuned: The tuned model's name.
    """
    if not pairs.compute.elsewhere:
        yield None
        return
    prompts = tuple(batch.encoded for batch in work.batches)
    metric, size = work.metric, work.batch_size
    with team(
        lambda device: Elsewhere(
            pairs.on(device), tuned, metric.name, prompts, size, work.seed, metric.finding, metric.last
        ),
        pairs.compute,
    ) as workers:
        yield workers


@dataclass
class Elsewhere:
    """What a worker does with a task: it is done with a work on the same pair, metric and batches of prompts."""

    pairs: Pairs
    tuned: str
    metric: str
    prompts: tuple[tuple[Encoded, ...], ...]  # of each batch
    batch_size: int
    seed: int
    finding: Finding | None = None
    last: tuple[str, ...] = ()  # see `Metric`

    def __call__(self, task: Task) -> Any:
        return task(self._work)

    @cached_property
    def _work(self) -> Work:
        pair = self.pairs.pair(self.tuned)
        several = [batch for items in self.prompts for batch in batches(items, len(items), pair.pad_id)]
        metric = replace(metric_of(self.metric, pair.tuned, several, self.finding), last=self.last)
        return Work(pair, metric, several, self.batch_size, self.seed, make_bases=self.pairs.bases)
