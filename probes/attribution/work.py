"""What every attribution method receives, and what it may return besides effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from probes.attribution.effects import Effects
from probes.attribution.forwards import Told, Variant
from probes.attribution.known import Known
from probes.attribution.metric import Metric
from probes.attribution.reading import Reading
from probes.attribution.subspaces import Bases
from probes.attribution.swaps import Swaps
from probes.capture.pair import Pair
from probes.store.schemas import ALL_DOMAINS
from tv.prompts.encoding import Batch, Encoded, batches
from tv.runtime.scheduler import Team
from tv.stats.means import Floats, mean_interval
from tv.stats.proportions import share_interval

#: Progress callback: (done, total, step).
Progress = Callable[[int, int, str], None]
#: A piece of work as data, and what it gives.
Task = Callable[["Work"], Any]


@dataclass(frozen=True)
class Rows:
    """Rows of a table that a method declares, without the columns `tuned` and `metric`."""

    table: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Work:
    """One pair, its prompts and the metric: what every method needs."""

    pair: Pair
    metric: Metric
    batches: Sequence[Batch]  # several prompts a forward: only one number of each is kept
    batch_size: int  # for methods that keep activations
    seed: int = 0
    granularity: tuple[str, ...] = ("component",)  # all that are requested
    controls: tuple[str, ...] = ()  # vectors used in place of T
    floors: Mapping[str, float] = field(default_factory=dict)  # of the metric by domain: what rounding alone can do
    make_bases: Callable[[], Bases] = dict  # of the pretrained weights; costly, so made on demand
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # of earlier methods, by name
    measured: list[Effects] = field(default_factory=list)  # of earlier methods
    known: Known = field(default_factory=Known)  # values of the metric, shared by all methods
    team: Team | None = None  # workers that do tasks in this process's place
    progress: Progress | None = None
    label: str = ""  # of the running step: "graft component"

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The prompts, in the order of the batches."""
        return [item for batch in self.batches for item in batch.encoded]

    @cached_property
    def items(self) -> dict[str, Encoded]:
        """The same by the prompts' ids."""
        return {item.prompt.id: item for item in self.encoded}

    def batch(self, prompts: Sequence[str]) -> Batch:
        """A batch again, from the ids of its prompts."""
        (batch,) = batches([self.items[prompt] for prompt in prompts], len(prompts), self.pair.pad_id)
        return batch

    @cached_property
    def small_batches(self) -> list[Batch]:
        """The same prompts in batches of `batch_size`, for methods that keep activations."""
        return batches(self.encoded, self.batch_size, self.pair.pad_id)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """The prompts' ids, in the order of the batches."""
        return tuple(item.prompt.id for item in self.encoded)

    @cached_property
    def domains(self) -> dict[str, str]:
        """Each prompt's domain, by its id."""
        return {item.prompt.id: item.prompt.domain for item in self.encoded}

    @cached_property
    def clusters(self) -> dict[str, str]:
        """Each prompt's cluster, by its id; the id itself where it has none."""
        return {item.prompt.id: item.prompt.cluster or item.prompt.id for item in self.encoded}

    @cached_property
    def swaps(self) -> Swaps:
        """The weights of every variant."""
        return Swaps(self.pair, self.seed, self.make_bases)

    @cached_property
    def reading(self) -> Reading:
        """How the metric of a variant is read."""
        return Reading(self.pair, self.metric, self.encoded, self.batches, self.swaps, self.known.earlier)

    def under(self, variants: Sequence[Variant]) -> tuple[Floats, Floats]:
        """The metric of variants of one model. What is known is not computed again, and what is computed is kept.

        Args:
            variants: All of them start from the same model.

        Returns:
            Of that model as it is, (prompts,), and under each variant, (variants, prompts), in the order of `prompts`.
        """
        start = Variant(variants[0].model)
        wanted = list(dict.fromkeys((start, *variants)))
        missing = [variant for variant in wanted if not self.known.has(variant, self.prompts)]
        for prompts, found, done, total in self.reading.of(missing, self.known, self.each):
            self.known.keep(prompts, found)
            if self.told:
                self.told(done, total)
        return self.known.of(start, self.prompts), np.stack([self.known.of(each, self.prompts) for each in variants])

    def each(self, tasks: Sequence[Task]) -> Iterator[tuple[Any, Any]]:
        """Every task with its result, as it is finished: done here, or by the workers, each with a work like this.

        Args:
            tasks: Data that can be pickled. Called with a work on the same pair and prompts, each gives its result.
        """
        if self.team is None:
            yield from ((task, task(self)) for task in tasks)
        else:
            yield from self.team.finished(tasks, relief="use fewer --workers or a smaller batch_size")

    def results(self, tasks: Sequence[Task]) -> list[Any]:
        """The results of different tasks, in the order of the tasks."""
        found = {}
        for done, (task, result) in enumerate(self.each(tasks), 1):
            found[task] = result
            if self.told:
                self.told(done, len(tasks))
        return [found[task] for task in tasks]

    @property
    def told(self) -> Told | None:
        """The progress callback with this work's label, called with (forwards done, total)."""
        return None if self.progress is None else partial(_with_label, self.progress, self.label)

    def named(self, label: str) -> Work:
        """The same work, with its progress under another label."""
        return self._sharing(replace(self, label=label), self.reading)

    def on(self, batches: Sequence[Batch]) -> Work:
        """The same work on some of its prompts."""
        some = replace(self, batches=batches)
        return self._sharing(some, self.reading.on(some.encoded, batches))

    def _sharing(self, other: Work, reading: Reading) -> Work:
        vars(other).update(swaps=self.swaps, reading=reading)  # what was proved and looked up is so there too
        return other

    def means(self, rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
        """Means of `value` over prompts, with intervals, over all prompts and by domain.

        Args:
            rows: `prompt_id value` and the columns `by`.
            by: The columns that one mean is grouped by.

        Returns:
            A row per domain and group: `by`, `value lo hi domain`.
        """
        names = [ALL_DOMAINS, *sorted(set(self.domains.values()))]
        parts = []
        for domain in names[: 1 if len(names) == 2 else None]:
            inside = rows[rows.prompt_id.map(self.domains).eq(domain) | (domain == ALL_DOMAINS)]
            table = inside.pivot(index="prompt_id", columns=by, values="value")
            clusters = [self.clusters[str(prompt)] for prompt in table.index]
            mean, lo, hi = _estimated(table.to_numpy(np.float64), clusters)
            parts.append(table.columns.to_frame(index=False).assign(value=mean, lo=lo, hi=hi, domain=domain))
        return pd.concat(parts, ignore_index=True)


def _estimated(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """(mean, lo, hi) of every column of (prompts, columns): as shares where all that is known is 0 or 1."""
    if np.isin(values[~np.isnan(values)], (0.0, 1.0)).all():
        mean, lo, hi = np.array([share_interval(column, clusters) for column in values.T]).T
        return mean, lo, hi
    mean, lo, hi, *_ = mean_interval(values, clusters)
    return mean, lo, hi


def _with_label(progress: Progress, label: str, done: int, total: int) -> None:
    progress(done, total, label)
