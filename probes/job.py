"""The main job: two checkpoints in, linked tables and a report out, stage by stage."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from probes.attribution.attributor import Attributor, attribution_tables, require_precision
from probes.attribution.dla import dla_completeness
from probes.attribution.elsewhere import helped
from probes.attribution.floors import floors_of
from probes.attribution.kept import Kept
from probes.attribution.known import Known
from probes.attribution.metric import require_answers, require_metric
from probes.attribution.scores import component_scores
from probes.capture.batch_files import kept_prompts
from probes.capture.behaviour_floor import behaviour_floor
from probes.capture.continuations import with_continuations
from probes.capture.estimate import estimate, require_space
from probes.capture.final_answers import TOKENS, final_answers, require_answers_in
from probes.capture.loading import Pairs, as_model, attributing, require_backend, require_streamable
from probes.capture.noise_floor import has_noise_floor, noise_floor
from probes.capture.own_tokens import own_answers
from probes.capture.pair import require_sites
from probes.capture.runner import Shard, shards
from probes.capture.shards import require_sources, run_shards
from probes.errors import RunError, SuiteError
from probes.linking import link
from probes.reporting.power import smallest_changes
from probes.reporting.report import report
from probes.store.additions import Added
from probes.store.journal import KEPT
from probes.store.manifest import STAGES, stages_of
from probes.store.run import Run, load
from probes.store.schemas import ALL_DOMAINS, SCHEMA_VERSION, SCHEMAS
from probes.store.writer import RunWriter, extendable, finished, require_place
from probes.suite import Suite, load_suite
from tv.architecture.anatomy import Architecture
from tv.architecture.in_words import in_words
from tv.architecture.sizes import experts_per_token
from tv.checkpoints.adapters.live import base_beside, holds_adapter
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.live import LiveSource
from tv.checkpoints.opening import Source, open_checkpoint
from tv.checkpoints.own_tokenizer import own_notes, require_meanings, same_tokens
from tv.checkpoints.pairing import PairFacts, alike, check_pair
from tv.checkpoints.tokenizers import tokenizer_digest
from tv.errors import WARNING
from tv.evaluation.ends import ends_by
from tv.matching.matching import match_pair
from tv.measures.cosine import cosine
from tv.measures.declared import TABLES as WEIGHT_TABLES
from tv.measures.tables import measured
from tv.prompts.behaviour import require_rows
from tv.prompts.encoding import Encoded, encode
from tv.prompts.files import Prompt, read_prompts
from tv.prompts.notes import prompt_notes
from tv.prompts.placeholders import placeholders_of, require_text
from tv.runtime.compute import Compute
from tv.runtime.workers import ray_cluster

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A checked pair of checkpoints, not yet loaded as live models."""

    name: str
    base: Checkpoint
    tuned: Checkpoint
    facts: PairFacts
    sameness: Mapping[str, Any] | None = None  # where the suite aligns; see `tv.matching.sameness.Sameness`


def run(
    suite: str | Path | Mapping[str, Any],
    *,
    base: LiveSource | None = None,
    tuned: LiveSource | Mapping[str, LiveSource] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    stages: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    remote: bool = False,
    compute: Compute = Compute(),
) -> Run:
    """Run a probe suite: check the pairs, measure weights, capture activations, attribute, link, report.

    Rerun the same call to resume a run that was killed. A finished run is returned unchanged.

    Args:
        suite: A YAML file's path, or the same as a mapping.
        base: In place of the suite's: a directory, a hub id or a live model, Hugging Face's or a TransformerBridge.
        tuned: In place of the suite's, one or several by name.
        out: A directory or a URL (s3://bucket/run); reports/<suite name> without it.
        force: Make the run again, and replace another that is there.
        stages: Which to do of weights, capture, noise_floor, attribute, link and report; all without it. A run with
            fewer is a finished run without the others' tables; the same call with more stages adds what is missing.
        settings: Keys that win over the suite's, such as {"keep": ["resid_post"], "generate": {"tokens": 8}}.
        remote: Let nnsight's server capture.
        compute: Where and how. Its workers share the modules and the prompts; the tables are the same.

    Returns:
        The finished run.

    Raises:
        InputError: Bad input, in one line; nothing is left behind.

    Examples:
        >>> less = {"tuned": "data/models/medical", "stages": ["capture"], "settings": {"measure": ["gates"]}}
        >>> probes.run("data/suites/demo.yaml", out="reports/gates", **less).tables
        ['prompts', 'tokens', 'gates', 'neurons']
    """
    job = prepare(
        suite,
        base=base,
        tuned=tuned,
        out=out,
        force=force,
        stages=stages,
        settings=settings,
        remote=remote,
        compute=compute,
    )
    return job.run()


def prepare(
    suite: str | Path | Mapping[str, Any],
    *,
    base: LiveSource | None = None,
    tuned: LiveSource | Mapping[str, LiveSource] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    stages: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    remote: bool = False,
    compute: Compute = Compute(),
) -> Job:
    """The job of `probes.run`, its input checked and nothing done yet.

    Args:
        suite: As in `probes.run`, and so are all that follow.
        base: In place of the suite's.
        tuned: In place of the suite's, one or several by name.
        out: A directory or a URL; reports/<suite name> without it.
        force: Make the run again, and replace another that is there.
        stages: Which to do; all without it.
        settings: Keys that win over the suite's.
        remote: Let nnsight's server capture.
        compute: Where and how.

    Returns:
        The job, which knows its size on disk and whether it is done, and runs.

    Raises:
        InputError: Bad input, in one line.

    Examples:
        >>> job = probes.prepare("data/suites/demo.yaml", out="reports/new", stages=["weights", "capture"])
        >>> job.stages, len(job.prompts), os.path.exists("reports/new")
        (('weights', 'capture'), 144, False)
    """
    wanted = _stages(stages)
    base = as_model(base)
    tuned = {name: as_model(of) for name, of in tuned.items()} if isinstance(tuned, Mapping) else as_model(tuned)
    sides = list(tuned.values()) if isinstance(tuned, Mapping) else [tuned]
    if base is None and isinstance(suite, Mapping) and "base" not in suite:
        base = next((side for side in sides if isinstance(side, PreTrainedModel) and holds_adapter(side)), None)
    base = base_beside(base, *sides)
    live = _live_models(base, tuned)
    chosen = load_suite(suite, base=_name(base), tuned=_names(tuned), settings=settings)
    if chosen.attribute is not None and "attribute" in wanted:
        compute = attributing(compute, chosen.attribute)
    models = Pairs(chosen, compute.silent(), live, remote)
    require_sources(models)
    require_backend(models)
    require_streamable(models)
    prompts = read_prompts(chosen.prompts)
    _require_domains(prompts)
    if chosen.answer_pattern is not None:
        require_answers_in(prompts, chosen.answer_pattern)
    if chosen.attribute is not None and "attribute" in wanted:
        require_metric(chosen.attribute.metric)
        require_answers(prompts, chosen.attribute.metric)
        require_precision(chosen.attribute, compute.dtype)
    pairs = [_noted(pair, models, prompts) for pair in open_pairs(chosen, live)]
    place, identity = out or Path("reports") / chosen.name, _identity(prompts, pairs, models)
    there, added = None if force else finished(place, identity), None
    if there is None and not force and (extended := extendable(place, identity)):
        there, added = extended
    if there is not None:
        done = stages_of(there.manifest)
        wanted = tuple(stage for stage in STAGES if stage in wanted or stage in done)
    require_place(place, force=force, extends=there)
    job = Job(models, pairs, prompts, place, identity, wanted, compute, force, there, added)
    if added is not None and added.prompts:
        _require_places(job)
    return job


def _require_places(job: Job) -> None:
    """Raise RunError where more prompts move the places at which the others of their set are measured."""
    old = [prompt for prompt in job.prompts if prompt.id in job.measured]
    alone = encode(old, job.models.tokenizer, job.pairs[0].base.architecture.context)
    there = {item.prompt.id: item for item in job.encoded}
    for item in alone:
        if there[item.prompt.id] != item:
            raise RunError(
                f"{job.out} holds another run: with the new prompts, those of {item.prompt.set} share another "
                f"beginning, so that {item.prompt.id!r} is measured at other places; choose another --out or pass "
                "--force"
            )


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
        (False, ['gates', 'neurons', 'tokens'])
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
        runs = {"capture", "noise_floor", "attribute"} & set(self.stages)
        return self.models.prove() if runs else []

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes that each table of activations will take, within a factor of two. The other tables are small."""
        if "capture" not in self.stages or self.suite.tokenizer == "own":
            return {}
        base = self.pairs[0].base
        return estimate(self.suite, base.architecture, self.encoded, experts_per_token(base.config))

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
            if kept := _kept(writer, self):
                _LOG.warning(kept)
            require_space(writer.path, sum(self.sizes.values()))
            _write_prompts(writer, self.encoded)
            if self._decomposes_again:
                self.models.keep_decompositions(writer.path / _DECOMPOSITIONS)
            with ray_cluster(self.compute.workers) if self.compute.engine == "ray" else nullcontext():
                if "weights" in self.stages:
                    _write_weights(writer, self)
                if "capture" in self.stages:
                    _capture(writer, self)
                if "noise_floor" in self.stages:
                    _noise_floor(writer, self)
                manifest = {**_manifest(self), "left_out": left_out}
                if "attribute" in self.stages:
                    _attribute(writer, self, manifest)
            shutil.rmtree(writer.path / _DECOMPOSITIONS, ignore_errors=True)
            unpublished = writer.finish(manifest)
            for name, step in (("link", link), ("report", report)):
                if name in self.stages:
                    self.compute.tell(name, 0, 1)
                    step(unpublished)
                    self.compute.tell(name, 1, 1)
        return load(writer.directory)

    @property
    def _decomposes_again(self) -> bool:
        """Whether the base's matrices are needed by more than one stage, tuned model or process, all on this disk."""
        split = "capture" in self.stages and "ledger" in self.suite.measure
        needed = ("weights" in self.stages) * len(self.pairs) + split * self.compute.workers
        return needed > 1 and self.compute.engine == "local"


#: Where a run keeps the base's decompositions while it is made.
_DECOMPOSITIONS = "decompositions"
#: The stages whose tables a stage reads.
_NEEDS = {"attribute": ("weights", "capture"), "link": ("weights", "capture"), "report": ("weights", "capture", "link")}


def _stages(names: Sequence[str] | None) -> tuple[str, ...]:
    """The stages in order. Raises SuiteError for an unknown stage, and for one that lacks a stage it reads."""
    chosen = STAGES if names is None else tuple(names)
    for name in chosen:
        if name not in STAGES:
            raise SuiteError(f"stage {name!r}: there is no such stage; use {', '.join(STAGES)}")
        for other in _NEEDS.get(name, ()):
            if other not in chosen:
                raise SuiteError(f"stage {name!r} reads what stage {other!r} writes; name both")
    if not chosen:
        raise SuiteError(f"no stages: name at least one of {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in chosen)


def open_pairs(suite: Suite, live: Mapping[str, PreTrainedModel] | None = None) -> list[Opened]:
    """Open and check every pair of a suite, before any is loaded.

    Raises CheckpointError where two are no pair, ArchitectureError where no activations can be read.
    """
    models = live or {}
    base = open_checkpoint(models.get("base", suite.base))
    require_sites(base.architecture)
    opened = [open_checkpoint(models.get(name, source), base=base) for name, source in suite.tuned.items()]
    base, *opened = alike([base, *opened])
    pairs = [Opened(name, base, one, check_pair(base, one)) for name, one in zip(suite.tuned, opened, strict=True)]
    return [_aligned(pair) for pair in pairs] if suite.align else pairs


def _aligned(pair: Opened) -> Opened:
    found = match_pair(pair.base, pair.tuned)
    return replace(pair, tuned=found.tuned, sameness=found.sameness.as_dict())


def _noted(pair: Opened, models: Pairs, prompts: Sequence[Prompt]) -> Opened:
    """The pair, with notes of what the tuned model's own tokenizer makes of the prompts.

    Raises PromptError for a prompt with an id that is another token to the tuned model, that is no row of a model's
    embedding or that stands for a picture, and SuiteError where each is to read its own tokens and one has none.
    """
    if pair.facts.tokenizer == "not compared" and models.suite.tokenizer == "own":
        raise SuiteError(f"tokenizer: own: {pair.facts.notes[0]}")
    alone = models.suite.tokenizer == "own"
    shared, own = models.tokenizer, models.own_tokenizer(pair.name)
    for model, words in ((pair.base, shared), (pair.tuned, own if alone else shared)):
        rows = model.architecture.vocab_size
        if max(words.get_vocab().values(), default=0) >= rows or placeholders_of(model.config):
            encoded = encode(prompts, words, sys.maxsize)
            require_rows(encoded, words, rows)
            require_text(encoded, words, model.config)
    if pair.facts.tokenizer in ("same", "not compared"):
        return pair
    if not alone:
        require_meanings(prompts, shared, own)
    reads = "each model reads its own tokens" if alone else "the base's tokenizer encodes the prompts for both"
    said = own_notes(prompts, shared, own) or [same_tokens(prompts)]
    notes = (*pair.facts.notes, *said, reads)
    return replace(pair, facts=replace(pair.facts, notes=notes))


def attribute(
    run: Run,
    *,
    method: str | Sequence[str] | None = None,
    metric: str | None = None,
    granularity: str | Sequence[str] | None = None,
    compute: Compute = Compute(),
    **settings: Any,
) -> pd.DataFrame:
    """Attribute a run's behaviour change again, from the checkpoints that it names, and replace its effect tables.

    What is not given is as in the run's suite. `probes.run` with that suite then treats it as another run, and
    replaces it only with `force`.

    Args:
        run: A finished run. Tables of methods that are not asked for again are dropped.
        method: One or several, such as "graft", "revert" or "path".
        metric: The behaviour that effects are measured on, such as "logit_diff", or `module:function`.
        granularity: The kinds of unit, one or several: "component", "module", "head", "kv_head", "expert" or "neuron".
        compute: The device and dtype that models compute in, and the progress callback.
        settings: Other keys of the suite's `attribute` section: `controls`, `curves`, and the methods' options.

    Returns:
        The table `effects`: a row per tuned model, unit, domain and method.

    Raises:
        SuiteError: An unknown method, metric or setting.
        RunError: A metric that no prompt can answer, a dtype in which a method cannot be computed, or a checkpoint that
            is no longer what the run read (a live model's name leads to what it was loaded from).

    Examples:
        >>> run = probes.load("reports/demo")
        >>> effects = probes.attribute(run, method="graft", controls=[], curves=False)
        >>> effects.method.unique().tolist(), "effects" in run.tables
        (['graft'], True)
    """
    given = {"methods": method, "metric": metric, "granularity": granularity, **settings}
    told = {name: [value] if name in _LISTS and isinstance(value, str) else value for name, value in given.items()}
    section = dict(run.manifest["suite"].get("attribute") or {})
    section |= {name: value for name, value in told.items() if value is not None}
    suite = load_suite({**run.manifest["suite"], "attribute": section})
    assert suite.attribute is not None
    require_answers(prompts_of(run), suite.attribute.metric)
    models = Pairs(suite, attributing(compute, suite.attribute).silent())
    require_streamable(models)
    _require_its_checkpoints(run, suite)
    by_pair = [_effects(models, run, name, compute) for name in suite.tuned]
    run.manifest.pop("identity", None)  # its tables are no longer those of its identity
    for table in attribution_tables() - {name for tables in by_pair for name in tables}:
        run.drop(table)  # of methods that were not asked for again
    for table in dict.fromkeys(name for tables in by_pair for name in tables):
        run.add(table, pd.concat([tables[table] for tables in by_pair if table in tables], ignore_index=True))
    return run["effects"]


_LISTS = ("methods", "granularity", "controls")


def _require_its_checkpoints(run: Run, suite: Suite) -> None:
    """Raise RunError where a source no longer holds the weights that the run's tables are of."""
    for name, held in _checkpoints(open_pairs(suite)).items():
        read = run.manifest["checkpoints"][name]["fingerprint"]
        if held["fingerprint"]["content"] != read["content"]:
            raise RunError(
                f"{run.path}: {held['source']} ({name}) holds other weights now than the run read: it was changed, or "
                "the run read a live model; run the suite again, with its attribute section"
            )


def prompts_of(run: Run) -> list[Prompt]:
    """The prompts that a run was made with, from its table `prompts`."""
    rows = run.arrow("prompts").drop_columns(["answer_pos"]).rename_columns({"prompt_id": "id"}).to_pylist()
    return [Prompt(**row) for row in rows]


def _kept(writer: RunWriter, job: Job) -> str:
    """What of the run is there and what is still to do, in a line; empty where nothing is there."""
    kept, left = list[str](), list[str]()
    names = [pair.name for pair in job.pairs]
    for stage in job.stages:
        if stage == "capture" and job.suite.tokenizer == "base":
            for name in names:
                whole, n = set(writer.done("capture")), len(job.prompts)
                done = sum(
                    len(shard.encoded) if shard.name in whole else kept_prompts(writer.path, shard.name)
                    for shard in job.shards(name)
                )
                kept += [f"capture {name} of {done} of {n} prompts"] * (done > 0)
                left += [f"capture {name} of {n - done} prompts"] * (done < n)
        elif stage in ("weights", "attribute"):
            whole = set(writer.done("effects" if stage == "attribute" else stage))
            for i, name in enumerate(names):
                part = Kept(writer.path / KEPT / name).words if stage == "attribute" else ""
                here = f"{i:05d}" in whole
                kept += [f"{stage} {name}"] * here + [f"attribute {name}: {part}"] * (bool(part) and not here)
                left += [] if here else [f"{stage} {name}"]
        else:
            (kept if writer.done(stage) else left).append(stage)
    more = f"added: {job.added}; " if job.added else ""
    return f"{more}kept: {', '.join(kept)}; to do: {', '.join(left)}" if kept else ""


def _capture(writer: RunWriter, job: Job) -> None:
    """Capture every tuned model's shards, except those that are there whole."""
    if job.suite.tokenizer == "own":
        return _answers(writer, job)
    encoded = job.encoded
    for i, pair in enumerate(job.pairs):
        work = job.shards(pair.name)
        left = [shard for shard in work if not writer.has("capture", shard.name)]
        done = len(encoded) - sum(len(shard.encoded) - kept_prompts(writer.path, shard.name) for shard in left)

        def told(prompts: int, name: str = pair.name) -> None:
            nonlocal done
            done += prompts
            job.compute.tell(f"capture {name}", done, len(encoded))

        told(0)
        for row in run_shards(left, job.models, writer.path, compute=job.compute, via=writer.via, progress=told):
            writer.complete("capture", row)
        if job.suite.answer_pattern is not None:
            writer.stage("capture", f"{pair.name}-answers", partial(_final_answers, job, pair.name, i == 0))


def _final_answers(job: Job, name: str, with_base: bool) -> dict[str, pd.DataFrame]:
    suite, pair = job.suite, job.models.pair(name)
    rows = final_answers(
        pair,
        name,
        job.encoded,
        suite.answer_pattern or "",
        tokens=(suite.generate and suite.generate.tokens) or TOKENS,
        ends=set().union(*job.models.ends.values()),
        with_base=with_base,
    )
    return {"behaviour": rows}


def _answers(writer: RunWriter, job: Job) -> None:
    """What both models answer to their own tokens: nothing else of them is compared."""
    for i, pair in enumerate(job.pairs):

        def made(name: str = pair.name, first: bool = i == 0) -> dict[str, pd.DataFrame]:
            return {"behaviour": own_answers(job.models, name, job.prompts, with_base=first)}

        job.compute.tell(f"capture {pair.name}", 0, len(job.prompts))
        writer.stage("capture", f"{i:05d}", made)
        job.compute.tell(f"capture {pair.name}", len(job.prompts), len(job.prompts))


def _noise_floor(writer: RunWriter, job: Job) -> None:
    """How far the base is from itself in another precision."""
    suite = job.suite
    if not has_noise_floor(suite, job.compute.device):
        return

    def made() -> dict[str, pd.DataFrame]:
        pair, size, tables = job.models.pair(job.pairs[0].name), suite.batch_size, {}
        if "gates" in suite.measure:
            tables["noise_floor"] = noise_floor(pair, job.encoded, batch_size=size, seed=suite.seed)
        if "behaviour" in suite.measure or suite.attribute is not None:
            tables["behaviour_floor"] = behaviour_floor(pair, job.encoded, batch_size=size)
        return tables

    writer.stage("noise_floor", "00000", made)


def _attribute(writer: RunWriter, job: Job, manifest: Mapping[str, Any]) -> None:
    if job.suite.attribute is None:
        return
    for i, opened in enumerate(job.pairs):

        def made(name: str = opened.name) -> dict[str, pd.DataFrame]:
            known = Kept(writer.path / KEPT / name, earlier=job.measured)
            return _effects(job.models, writer.so_far(manifest), name, job.compute, known)

        writer.stage("effects", f"{i:05d}", made)


def _effects(
    models: Pairs, run: Run, name: str, compute: Compute, known: Known | None = None
) -> dict[str, pd.DataFrame]:
    """Every table of one pair's attribution, from the models, the run's measurements and what is `known` already."""
    suite, pair = models.suite, models.pair(name)
    assert suite.attribute is not None
    encoded = encode(prompts_of(run), pair.tokenizer, pair.architecture.context)
    floors = floors_of(run, suite.attribute.metric)
    work = Attributor(
        pair,
        encoded,
        suite.attribute,
        batch_size=suite.batch_size,
        seed=suite.seed,
        floors=floors,
        known=known or Known(),
    )
    scores = component_scores(run, name) if suite.attribute.curves else {}
    with helped(work.work, models, name) as team:
        tables = work.tables(
            bootstrap=suite.bootstrap,
            bases=models.bases,
            scores=scores,
            team=team,
            progress=partial(compute.tell, f"attribute {name}"),
        )
    sums = [check.row("logit_diff") for check in dla_completeness(pair, run, name, encoded)]
    tables["checks"] = pd.concat([tables["checks"], pd.DataFrame(sums)], ignore_index=True)
    return {table: rows.assign(tuned=name) for table, rows in tables.items()}


def _require_domains(prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        if prompt.domain == ALL_DOMAINS:
            raise SuiteError(
                f"prompt {prompt.id!r} of {prompt.set}: no domain can be called {ALL_DOMAINS!r}, which means every "
                "prompt; give its set another `domain` in the suite"
            )


def _write_prompts(writer: RunWriter, encoded: Sequence[Encoded]) -> None:
    rows = pd.DataFrame([asdict(item.prompt) | {"answer_pos": item.answer_pos} for item in encoded])
    rows = rows.rename(columns={"id": "prompt_id"})
    writer.write("prompts", rows, shard="00000")


def _write_weights(writer: RunWriter, job: Job) -> None:
    # On the CPU, wherever models compute, so that a run on GPUs has the same tables.
    compute = replace(job.compute, device="cpu", cache=job.models.compute.cache)
    if job.suite.align:  # a checkpoint written differently is open here alone
        compute = replace(compute, workers=1, engine="local")
    for i, opened in enumerate(job.pairs):

        def made(pair: Opened = opened) -> dict[str, pd.DataFrame]:
            base: Source = pair.base
            tuned: Source = pair.tuned
            if compute.elsewhere:  # other processes open the checkpoints themselves
                base, tuned = job.suite.base, job.suite.tuned[pair.name]
            names = [name for name, table in WEIGHT_TABLES.items() if table.in_runs]
            tables = measured(base, tuned, names, job.suite.epsilons, compute=compute.about(pair.name))
            if not pair.base.architecture.tied:  # to a process that opens this pair alone it may be, of equal numbers
                tables["weights"] = tables["weights"].assign(tied=False)
            return {name: table.assign(tuned=pair.name) for name, table in tables.items()}

        writer.stage("weights", f"{i:05d}", made)
    if len(job.pairs) > 1:
        writer.stage("cosines", "00000", partial(_cosines, job.pairs, compute))


def _cosines(pairs: Sequence[Opened], compute: Compute) -> dict[str, pd.DataFrame]:
    """The cosines between the tuning vectors, over all parameters and layer by layer."""
    tuned = {pair.name: pair.tuned for pair in pairs}
    rows = cosine(pairs[0].base, tuned, level="layer", compute=compute)
    return {"cosines": rows.rename(columns={"a": "tuned", "b": "reference"})[SCHEMAS["cosines"].names]}


def _identity(prompts: Sequence[Prompt], pairs: Sequence[Opened], models: Pairs) -> dict[str, Any]:
    """Everything that the rows of a run depend on. Which process does the work is not part of it."""
    rows = ((prompt.id, json.dumps(asdict(prompt), ensure_ascii=False)) for prompt in prompts)
    writes = models.generates or models.suite.answer_pattern is not None
    return {
        "suite": models.suite.model_dump(mode="json"),
        "prompts": [[name, hashlib.sha256(row.encode()).hexdigest()[:16]] for name, row in rows],
        "checkpoints": {name: entry["fingerprint"] for name, entry in _checkpoints(pairs).items()},
        "tokenizers": {
            "base": tokenizer_digest(pairs[0].base),
            **{pair.name: tokenizer_digest(pair.tuned) for pair in pairs},
        },
        **({"ends": {name: sorted(ids) for name, ids in models.ends.items()}} if writes else {}),
        "computed": models.computed(),
        "versions": _versions(models.suite),
        "schema_version": SCHEMA_VERSION,
    }


def _checkpoints(pairs: Sequence[Opened]) -> dict[str, dict[str, Any]]:
    named = {"base": pairs[0].base, **{pair.name: pair.tuned for pair in pairs}}
    return {
        name: {"source": checkpoint.source, "fingerprint": checkpoint.fingerprint()}
        for name, checkpoint in named.items()
    }


def _versions(suite: Suite) -> dict[str, str]:
    packages = dict.fromkeys(("tuning-probes", "torch", "transformers", "pandas", "pyarrow", suite.backend))
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _manifest(job: Job) -> dict[str, Any]:
    suite, pairs, encoded = job.suite, job.pairs, job.encoded
    architecture = pairs[0].base.architecture
    return {
        "suite": suite.model_dump(mode="json"),
        "seed": suite.seed,
        "versions": _versions(suite),
        "threads": torch.get_num_threads(),
        "computed": job.models.computed(),
        "stages": list(job.stages),
        "architecture": {
            "name": architecture.name,
            "n_layers": architecture.n_layers,
            "d_model": architecture.d_model,
            "n_heads": architecture.n_heads,
            "n_kv_heads": architecture.n_kv_heads,
            "gated": architecture.gated,
            "parts": _parts(architecture),
            "in_words": in_words(architecture),
        },
        "checkpoints": _checkpoints(pairs),
        "power": job.power,
        "sameness": {pair.name: pair.sameness for pair in pairs if pair.sameness is not None},
        "coverage": {
            pair.name: asdict(pair.facts.coverage) | {"note": pair.facts.coverage.note.removeprefix(WARNING)}
            for pair in pairs
        },
        "notes": {pair.name: [*pair.facts.notes, *job.notes] for pair in pairs},
        "shards": {
            shard.name: [item.prompt.id for item in shard.encoded] for pair in pairs for shard in job.shards(pair.name)
        },
        "n_prompts": len(encoded),
        "n_tokens": sum(len(item.ids) for item in encoded),
    }


def _parts(architecture: Architecture) -> list[dict[str, list[str]]]:
    """Of every block its components, in order, with their matrices; those of experts are not named."""
    parts: list[dict[str, list[str]]] = [{} for _ in range(architecture.n_layers)]
    for module in architecture.modules:
        if module.kind == "linear" and module.expert < 0 and 0 <= module.layer < architecture.n_layers:
            parts[module.layer].setdefault(module.component, []).append(module.name)
    return parts


def _live_models(
    base: LiveSource | None, tuned: LiveSource | Mapping[str, LiveSource] | None
) -> dict[str, PreTrainedModel]:
    named = dict(tuned) if isinstance(tuned, Mapping) else {"tuned": tuned}
    return {name: model for name, model in {"base": base, **named}.items() if isinstance(model, PreTrainedModel)}


def _name(source: LiveSource | None) -> str | None:
    if isinstance(source, PreTrainedModel):
        return str(source.config.name_or_path or type(source).__name__)
    return None if source is None else str(source)


def _names(tuned: LiveSource | Mapping[str, LiveSource] | None) -> Any:
    if isinstance(tuned, Mapping):
        return {name: _name(source) for name, source in tuned.items()}
    return {"tuned": _name(tuned)} if isinstance(tuned, PreTrainedModel) else _name(tuned)
