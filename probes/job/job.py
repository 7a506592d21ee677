"""A job whose input is checked: what it reads, the space it takes, and its stages one after the other."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from probes.capture.continuations import with_continuations
from probes.capture.estimate import estimate, require_space, streaming
from probes.capture.loading import Pairs
from probes.capture.runner import Shard, shards
from probes.job.identity import manifest_of
from probes.job.kept import what_is_kept
from probes.job.pairs import Opened
from probes.job.stages import (
    write_activations,
    write_discoveries,
    write_effects,
    write_floors,
    write_kind,
    write_prompts,
    write_weights,
)
from probes.linking import link
from probes.reporting.power import smallest_changes
from probes.reporting.report import report
from probes.store.additions import Added
from probes.store.manifest import stages_of
from probes.store.run import Run, load
from probes.store.writer import RunWriter
from probes.suite import Suite
from tv.architecture.sizes import experts_per_token
from tv.evaluation.ends import ends_by
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt
from tv.prompts.notes import prompt_notes
from tv.runtime.compute import Compute
from tv.runtime.workers import ray_cluster

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job whose input is checked: its models and prompts, the disk space it will take, and its stages.

    `probes.prepare` makes one, and `run` does it.

    Attributes:
        models: Where the live models come from; none is loaded before it is needed.
        pairs: The opened checkpoints of every tuned model, with the base.
        prompts: All prompts of the suite, in order.
        out: Where the run will be.
        identity: Everything that the rows of the run depend on: a run of another identity is another run.
        stages: The stages that the run will have done, in order.
        compute: Where and how.
        force: Whether another run at `out` is replaced.
        there: The same run, where it is at `out` already; it may lack stages, and what `added` says.
        added: The prompts, methods, … that the run at `out` lacks; None where it lacks none.

    Examples:
        >>> job = probes.prepare("data/suites/demo.yaml", out="reports/new", settings={"measure": ["gates"]})
        >>> job.is_done, sorted(job.sizes)
        (False, ['gates', 'neurons', 'predictions', 'tokens'])
    """

    models: Pairs
    pairs: Sequence[Opened]
    prompts: Sequence[Prompt]
    out: str | Path
    identity: Mapping[str, Any]
    stages: tuple[str, ...]  # that the run will have done, in order
    compute: Compute
    force: bool
    there: Run | None  # the run that is there, which may lack stages
    added: Added | None = None  # what it lacks besides

    @property
    def suite(self) -> Suite:
        """The suite, with the given values in place of its own."""
        return self.models.suite

    @property
    def is_done(self) -> bool:
        """Whether the run is there, with all the stages."""
        same = self.there is not None and self.added is None
        return self.there is not None and same and stages_of(self.there.manifest) == self.stages

    @cached_property
    def measured(self) -> frozenset[str]:
        """The prompts, by id, that the run at `out` has."""
        new = () if self.added is None else self.added.prompts
        return frozenset(prompt.id for prompt in self.prompts if self.there is not None and prompt.id not in new)

    def shards(self, name: str) -> list[Shard]:
        """The work of capturing one pair: the shards that the run at `out` has, then those of other prompts."""
        by_id = {item.prompt.id: item for item in self.encoded}
        held = {} if self.there is None else self.there.manifest.get("shards", {})
        with_base = name == self.pairs[0].name
        old = [
            Shard(name, i, tuple(by_id[prompt] for prompt in prompts), with_base)
            for i, prompts in enumerate(ids for shard, ids in held.items() if shard == f"{name}-{shard[-5:]}")
        ]
        left = [item for item in self.encoded if not old or item.prompt.id not in self.measured]
        new = shards(left, self.suite, name, self.pairs[0].base.architecture, with_base)
        return [*old, *(replace(shard, index=len(old) + i) for i, shard in enumerate(new))]

    @cached_property
    def encoded(self) -> list[Encoded]:
        """The texts that both models read: prompts, with their continuations where the suite generates."""
        encoded = encode(self.prompts, self.models.tokenizer, self.pairs[0].base.architecture.context)
        if self.suite.generate is None:
            return encoded
        ends = set().union(*self.models.ends.values()) if self.models.generates else ()
        return with_continuations(self.models.pair(self.pairs[0].name), encoded, self.suite.generate, ends)

    @cached_property
    def notes(self) -> list[str]:
        """What a reader should know of how the models read the prompts, a line each."""
        notes = prompt_notes(self.prompts, self.models.tokenizer)
        if not self.models.generates:
            return notes
        return notes + ends_by("greedy", self.models.ends, dict.fromkeys(self.models.ends, self.models.tokenizer))[1]

    @cached_property
    def power(self) -> list[str]:
        """The smallest change of behaviour that the prompts of each domain can show, a line for as many prompts."""
        behaves = "behaviour" in self.suite.measure or self.suite.attribute is not None
        return smallest_changes(self.prompts) if behaves else []

    @cached_property
    def left_out(self) -> list[str]:
        """What no table shows, as the proof on the live models finds, a line each. It loads the first pair.

        Raises ArchitectureError where the models do not compute what their architecture says.
        """
        if not {"capture", "noise_floor", "discover", "attribute"} & set(self.stages):
            return []
        self.compute.tell("load models and check their structure", 0, 1)
        found = self.models.prove()
        self.compute.tell("load models and check their structure", 1, 1)
        return found

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes that each table of activations will take, within a factor of two. The other tables are small."""
        if "capture" not in self.stages or self.suite.tokenizer == "own":
            return {}
        base = self.pairs[0].base
        return estimate(self.suite, base.architecture, self.encoded, experts_per_token(base.config))

    @cached_property
    def besides(self) -> int:
        """Bytes that a streamed capture takes besides, at most, until a shard is done; 0 where nothing is streamed."""
        if not self.sizes or not self.models.streams:
            return 0
        base, width = self.pairs[0].base, getattr(torch, self.compute.dtype).itemsize
        work = [shard.encoded for pair in self.pairs for shard in self.shards(pair.name)]
        size = streaming(self.suite, base.architecture, work, width, experts_per_token(base.config))
        return size * min(self.compute.workers, len(work))

    def run(self) -> Run:
        """Do what is missing.

        Returns:
            The finished run; the one that is there, where nothing is missing.

        Raises:
            InputError: As `probes.run` does.
        """
        if self.there is not None and self.is_done:
            return self.there
        left_out = self.left_out  # proved before any work
        redo = () if self.added is None else self.added.stages
        with RunWriter(self.out, force=self.force, extends=self.there, redo=redo) as writer:
            writer.begin(self.identity)
            if kept := what_is_kept(writer, self):
                _LOG.warning(kept)
            besides = 0 if not self.besides or self._all_captured(writer) else self.besides
            require_space(writer.path, sum(self.sizes.values()), besides)
            write_prompts(writer, self.encoded)
            if self._decomposes_again:
                self.models.keep_decompositions(writer.path / _DECOMPOSITIONS)
            with ray_cluster(self.compute.workers) if self.compute.engine == "ray" else nullcontext():
                if "weights" in self.stages:
                    write_weights(writer, self)
                if "capture" in self.stages:
                    write_activations(writer, self)
                if "noise_floor" in self.stages:
                    write_floors(writer, self)
                if "discover" in self.stages:
                    write_discoveries(writer, self)
                manifest = {**manifest_of(self), "left_out": left_out}
                if "discover" in self.stages:
                    write_kind(writer, self, manifest)
                if "attribute" in self.stages:
                    for name, note in write_effects(writer, self, manifest).items():
                        manifest["notes"][name] = [*manifest["notes"][name], note]
            shutil.rmtree(writer.path / _DECOMPOSITIONS, ignore_errors=True)
            unpublished = writer.finish(manifest)
            for name, step in (("link", link), ("report", report)):
                if name in self.stages:
                    self.compute.tell(name, 0, 1)
                    step(unpublished)
                    self.compute.tell(name, 1, 1)
        made = load(writer.directory)
        if lost := [table for table in (self.there.tables if self.there else ()) if table not in made.tables]:
            _LOG.warning("these tables of the earlier run are gone: %s; compute them again", ", ".join(lost))
        return made

    def _all_captured(self, writer: RunWriter) -> bool:
        return {shard.name for pair in self.pairs for shard in self.shards(pair.name)} <= set(writer.done("capture"))

    @property
    def _decomposes_again(self) -> bool:
        """Whether the base's matrices are needed by more than one stage, tuned model or process, all on this disk."""
        split = "capture" in self.stages and "ledger" in self.suite.measure
        needed = ("weights" in self.stages) * len(self.pairs) + split * self.compute.workers
        return needed > 1 and self.compute.engine == "local"


#: Where a run keeps the base's decompositions while it is made.
_DECOMPOSITIONS = "decompositions"
