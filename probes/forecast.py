"""What a run takes on this machine, printed before it starts: CPU seconds, wall time and peak memory, by stage.

A forward pass of both models and the measures of a matrix of each shape are tried out, which takes a few seconds; the
rest is counted. What a piece costs in forwards was measured with the benchmarks, and stands here as a constant each.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.attributor import steps
from probes.attribution.metric import answerable, answers
from probes.attribution.units import Unit
from probes.capture.final_answers import answer, tokens_shown
from probes.capture.noise_floor import PROMPTS, has_noise_floor, other_precision, some_of_each_domain
from probes.capture.pair import Pair
from probes.capture.runner import with_bases
from probes.job.job import Job
from probes.measures.edit_distance import edit_distances
from probes.measures.ledger import basis_of
from probes.planning import curve_sets, memory_of
from probes.reporting.prompts import SHOWN
from probes.store.table import size_text
from probes.suite import Suite
from probes.trial import NOTHING, Pace, some_of, timed, tried
from tv.architecture.anatomy import Architecture, Module
from tv.errors import InputError
from tv.evaluation.greedy import TOGETHER, groups_of
from tv.measures.declared import TABLES
from tv.measures.decomposition import decompose
from tv.measures.one_module import Wanted, measure_module
from tv.prompts.encoding import Encoded, Positions, batches, padded_tokens, positions
from tv.runtime.compute import Compute
from tv.runtime.products import linear
from tv.runtime.progress import duration

#: Bare forwards of both models that a capture takes, by what it measures: see benchmarks/capture_speed.py.
LIGHT, FULL = 1 / 0.93, 1 / 0.88
#: What the ledger adds, in forwards of both models over the places that it reads: at some, and at every place.
LEDGER, EVERYWHERE = 2.2, 1 / 0.55 - 1 / 0.88
#: What the logit lens adds to that.
LENS = 0.5
#: Forwards of a node of path, and nodes of a prompt: four to begin with, four to eleven on average in six real pairs.
NODE, NODES = 6.0, 5.5
#: What is read of the forward behind a changed block, where variants are read together.
STACKED = 1.0
#: What an attribution layer by layer takes of one in memory, see benchmarks/stream.py.
STREAMED = 1.33
#: CPU seconds of the link and of the report of one tuned model.
PAGES = 6.0
#: What they hold of the tables in memory, in bytes for each on disk: of one tuned model at a time, and of all.
LINKED, REPORTED = 8, 1
#: CPU seconds of a process until it computes: it imports what this one has, and opens both models.
START = 8.0
#: Stages that several processes share.
SHARED = ("weights", "capture", "attribute")
#: Of matrices only those of at most so many entries are tried.
ENTRIES = 2_000_000
_PATTERNS = 64


@dataclass(frozen=True)
class Stage:
    """What one stage takes: seconds of all CPUs together, seconds on the clock, bytes of the process at its peak."""

    name: str
    cpu: float
    wall: float
    memory: int


def forecast(job: Job) -> list[Stage]:
    """What the stages of a job take, from a trial on its own models and matrices.

    Args:
        job: A job that is not done. Its first pair is loaded, as the run needs it too.

    Returns:
        A row for each stage, in order; none where a server or other machines do the work, whose pace a trial here does
        not show. What an earlier process finished is not taken off.

    Examples:
        >>> import probes
        >>> job = probes.prepare("data/suites/demo.yaml", out="reports/new", stages=["weights"])
        >>> [(stage.name, stage.cpu > 0, stage.memory > 0) for stage in forecast(job)]
        [('weights', True, True)]
    """
    if job.compute.engine == "ray" or job.models.remote or job.suite.tokenizer == "own":
        return []
    paces = dict(_paces(job))
    if job.compute.workers > 1:
        paces |= {name: _shared(paces[name], job.compute.workers) for name in paces if name in SHARED}
    held = dict(memory_of(job.suite, job.pairs[0].base, job.encoded, job.compute))
    bases = held.get("ledger bases, at most", 0)
    beyond = {
        "capture": bases + held.get("capture of a batch", 0),
        "noise_floor": bases + held.get("noise floor", 0),
        "attribute": bases + max(held.get("attribution of a batch", 0), held.get("path", 0)),
        "link and report": max(LINKED / len(job.pairs), REPORTED) * sum(job.sizes.values()),
    }
    here = _resident()
    return [Stage(name, pace.cpu, pace.wall, here + round(beyond.get(name, 0))) for name, pace in paces.items()]


def estimated(job: Job) -> Iterator[str]:
    """What the stages of a job take here, a line each after the total: time, and memory at its peak. It loads a pair.

    Examples:
        >>> import probes
        >>> job = probes.prepare("data/suites/demo.yaml", out="reports/new", stages=["weights"])
        >>> [line.split(":")[0] for line in estimated(job)][1:]
        ['  weights']
    """
    try:
        stages = forecast(job)
    except InputError as error:  # a trial needs memory, and classes that compute without their weights
        yield f"estimated time: none, {error}"
        return
    if not stages:
        return
    cpu, wall = sum(stage.cpu for stage in stages), sum(stage.wall for stage in stages)
    again = " for the whole run, of which a part is done" if job.there is not None else ""
    yield f"estimated time{again}: {duration(wall)} here, {duration(cpu)} of CPU time, at the pace of a short trial"
    for stage in stages:
        peak = f"up to {size_text(stage.memory)} of memory"
        yield f"  {stage.name}: {duration(stage.wall)} here, {duration(stage.cpu)} of CPU time, {peak}"


def _shared(pace: Pace, workers: int) -> Pace:
    """Work that so many processes of this machine do."""
    return Pace(pace.cpu + workers * START, pace.wall / workers + START)


def _paces(job: Job) -> Iterator[tuple[str, Pace]]:
    suite, n = job.suite, len(job.pairs)
    if "weights" in job.stages:
        yield "weights", _weights(job)
    if {"capture", "noise_floor", "attribute"} & set(job.stages):
        forward = _tried(job) if job.models.streams or job.compute.elsewhere else _forward(job)
    if "capture" in job.stages:
        yield "capture", _capture(job, forward)
    if "noise_floor" in job.stages and has_noise_floor(suite, job.compute.device):
        yield "noise_floor", forward.token.times(_floor_tokens(job) * (1 + _twin(job.compute)))
    if "attribute" in job.stages and suite.attribute is not None:
        usable = answerable(job.encoded, suite.attribute.metric)
        blocks, logits = forward.block.times(_padded(job, usable)), forward.logits.times(_places(usable, "target"))
        work = list(attribution_work(suite, job.pairs[0].base.architecture, len(job.encoded)))
        taken = blocks.times(sum(step.blocks for step in work)) + logits.times(sum(step.logits for step in work))
        yield "attribute", taken.times(n * (STREAMED if job.models.streams else 1.0))
    if "report" in job.stages:
        yield "link and report", Pace(PAGES * n, PAGES * n)


def capture_forwards(suite: Suite, encoded: Sequence[Encoded]) -> float:
    """Bare forwards of both models that a capture of these prompts takes."""
    heads = "head_out" in suite.sites and {"contributions", "changes"} & set(suite.measure)
    taken = FULL if heads or "ledger" in suite.measure else LIGHT
    if "lens" in suite.measure:
        taken += LENS
    if "ledger" in suite.measure:
        share = _places(encoded, suite.ledger_positions) / max(1, sum(len(item.ids) for item in encoded))
        taken += EVERYWHERE if suite.ledger_positions == "all" else LEDGER * share
    return taken


def _padded(job: Job, encoded: Sequence[Encoded]) -> int:
    return padded_tokens(encoded, job.suite.batch_size, job.pairs[0].base.architecture.padded)


def _places(encoded: Sequence[Encoded], which: Positions) -> int:
    return sum(len(positions(item, which)) for item in encoded)


def _capture(job: Job, forward: _Forward) -> Pace:
    """Both models on all prompts with their padding, what is measured of them, and what they write."""
    suite, n = job.suite, len(job.pairs)
    read = _padded(job, job.encoded)
    taken = forward.token.times(2 * n * read * capture_forwards(suite, job.encoded))
    if job.models.streams:
        taken += _read(job).times(2 * n)
    elif job.models.answers:
        taken += _written(job, forward)
    if "gates" in suite.measure and suite.edit_distance != "none":
        taken += _edits(job, _places(job.encoded, suite.edit_distance))
    if "ledger" in suite.measure and "weights" not in job.stages:  # which keeps what it decomposes
        taken += _bases(job)
    return taken


def _read(job: Job) -> Pace:
    """All weights of one model, read once, layer by layer."""
    pair = job.pairs[0].weights
    matrices = [module for module in pair.base.architecture.modules if len(module.shape) == 2]
    return _of_each(matrices, pair.weight)


def _written(job: Job, forward: _Forward) -> Pace:
    """What both models write: to the prompts that are shown, and where answers are looked for, to all."""
    suite, texts = job.suite, [item.ids[: item.n_text] for item in job.encoded]
    shown, tokens = min(SHOWN, len(texts)) * len(job.pairs), tokens_shown(suite)
    pieces = [((shown + min(shown, len(texts))) / len(texts), texts)]  # to one prompt the base writes once
    if suite.answer_pattern is not None:  # which the base writes once, and asked are targets that have an answer
        asked = [item for item in job.encoded if answer(suite.answer_pattern, item.prompt.target or "") is not None]
        pieces.append((1 + len(job.pairs), [item.ids[: item.n_text] for item in asked]))
    read = steps = 0.0
    for models, given in pieces:
        for group in groups_of(given, tokens, TOGETHER):
            lengths = [len(given[i]) for i in group]
            read += models * len(group) * (min(lengths) - 1)
            steps += models * (max(lengths) - min(lengths) + tokens)
    return forward.token.times(read) + forward.step.times(steps)


def _edits(job: Job, places: int) -> Pace:
    """Edit distances of every layer's gate patterns at so many places, of which one gate in thirty differs."""
    widths = Counter(block.gate.shape[0] for block in job.pairs[0].base.architecture.blocks if block.gate is not None)
    taken, draw = NOTHING, np.random.default_rng(0)
    for width, layers in widths.items():
        base = draw.random((_PATTERNS, width)) < 0.5
        tuned = base ^ (draw.random(base.shape) < 1 / 30)
        pace = timed(lambda base=base, tuned=tuned: edit_distances(base, tuned, 0)).times(1 / _PATTERNS)  # type: ignore[misc]
        taken += pace.times(layers * places * len(job.pairs))
    return taken


def _bases(job: Job) -> Pace:
    """The base's output directions, once for all pairs."""
    pair = job.pairs[0].weights
    return _of_each(with_bases(pair.base.architecture), lambda module: basis_of(decompose(pair.weight(module))))


def _floor_tokens(job: Job) -> int:
    """Tokens that the base and its twin read: of some prompts for their gates, of all for behaviour."""
    suite, read = job.suite, 0
    if "gates" in suite.measure:
        read += _padded(job, some_of_each_domain(job.encoded, PROMPTS, suite.seed))
    if "behaviour" in suite.measure or suite.attribute is not None:
        read += _padded(job, job.encoded)
    return read


def _twin(compute: Compute) -> float:
    """How many times as long a product takes the twin: several on a CPU without instructions for bfloat16."""
    own = getattr(torch, compute.dtype)
    paces = []
    for dtype in (own, other_precision(own)):
        x, weight = (torch.ones(rows, 512, dtype=dtype, device=compute.tensor_device) for rows in (128, 1536))
        linear(x, weight)  # the first one is slower
        paces.append(timed(lambda x=x, weight=weight: [linear(x, weight) for _ in range(8)]))  # type: ignore[misc]
    first, second = (pace.cpu if compute.device == "cpu" else pace.wall for pace in paces)
    return second / max(first, 1e-9)


@dataclass(frozen=True)
class Work:
    """A step of an attribution, in forwards over the prompts: of the blocks, and of the unembedding at the answers."""

    name: str
    blocks: float
    logits: float


def attribution_work(suite: Suite, architecture: Architecture, prompts: int) -> Iterator[Work]:
    """The steps of one pair's attribution. Blocks before a swap are skipped, the unembedding behind it never is."""
    wanted = suite.attribute
    assert wanted is not None

    def left(unit: Unit) -> float:
        return min(1.0, 1 - max(unit.layer, 0) / architecture.n_layers) if unit.layer < architecture.n_layers else 0.0

    yield Work("endpoints", 4.0, 4.0)  # and their proofs
    for methods, granularity, units in steps(wanted, architecture):
        for method in methods:
            cost = method.costs(architecture, units, wanted)
            if cost is None:
                continue
            name, logits = f"{method.name} {granularity}".strip(), float(cost.forwards)
            if cost.backwards:
                blocks = logits = NODES * NODE
            elif units:
                moved = min(len(units), cost.forwards)
                blocks = STACKED * sum(map(left, units)) * moved / len(units) + max(0, cost.forwards - 1 - moved)
            else:
                blocks = STACKED * cost.forwards / 2
            yield Work(name, blocks, logits)
    if wanted.curves:
        share = min(1.0, wanted.curve_prompts / max(1, prompts))
        sets = share * curve_sets(suite, architecture)
        yield Work("curves", STACKED * sets, sets)


@dataclass(frozen=True)
class _Forward:
    """What a forward pass of either model takes: a token with its logits, these alone; and one more token."""

    token: Pace
    logits: Pace
    step: Pace

    @property
    def block(self) -> Pace:
        """A token in all blocks."""
        return self.token.without(self.logits)


def _forward(job: Job) -> _Forward:
    """Of the models of the first pair."""
    pair = job.models.pair(job.pairs[0].name)
    return _Forward(*_token(job, pair), _step(job, pair))


def _tried(job: Job) -> _Forward:
    """Of a model of the base's configuration, where the models themselves are not in this process."""
    device = job.compute.tensor_device
    trial = tried(job.pairs[0].base, job.encoded, job.suite.batch_size, job.compute.dtype, device)
    return _Forward(trial.token + trial.logits, trial.logits, trial.step)


def _token(job: Job, pair: Pair) -> tuple[Pace, Pace]:
    """A token of the prompts with its logits, and these alone."""
    some = some_of(job.encoded, job.suite.batch_size)
    [batch] = batches(some, len(some), pair.pad_id)
    both = partial(_both, pair, lambda model: answers(model, batch))
    unembed, read = pair.base.get_submodule(pair.architecture.unembed), list[Tensor]()
    hook = unembed.register_forward_pre_hook(lambda _, given: read.extend(given[:1]))
    try:
        both()  # the first call of a process is slower
    finally:
        hook.remove()
    token = timed(both).times(0.5 / sum(len(item.ids) for item in some))
    if not read:  # it takes what it reads by keyword
        return token, NOTHING
    with torch.inference_mode():
        return token, timed(lambda: unembed(read[0])).times(read[0].shape[-1] / read[0].numel())


def _step(job: Job, pair: Pair) -> Pace:
    """One more token of each of the texts that are continued together."""
    ids = torch.zeros(min(TOGETHER, len(job.encoded)), 1, dtype=torch.long, device=pair.base.device)
    both = partial(_both, pair, lambda model: model(input_ids=ids, use_cache=False))
    both()
    return timed(both).times(0.5)


def _both(pair: Pair, forward: Callable[[PreTrainedModel], object]) -> None:
    with torch.inference_mode():
        for model in pair.models:
            forward(model)


def _weights(job: Job) -> Pace:
    """The tables of weights of every pair; the first decomposes the base's matrices, and the others find that kept."""
    pair = job.pairs[0].weights
    modules = pair.base.architecture.modules
    names = [name for name, table in TABLES.items() if table.in_runs]
    tables = {name: ({"levels": job.suite.epsilons} if name == "alignment" else {}) for name in names}
    with TemporaryDirectory() as cache:
        measure = partial(measure_module, pair, wanted=Wanted(tables, cache=Path(cache)))
        taken, further = _of_each(modules, measure), len(job.pairs) - 1
        return taken + _of_each(modules, measure).times(further) if further else taken


def _of_each(modules: Sequence[Module], work: Callable[[Module], object]) -> Pace:
    """What a piece of work takes for all modules: one of each shape is tried, larger ones are counted by their cost."""
    shapes = Counter(map(_alike, modules))
    first = {_alike(module): module for module in reversed(modules)}
    total, last, done = NOTHING, NOTHING, 0.0
    for key, module in sorted(first.items(), key=lambda item: _work(item[1])):
        if _work(module) and _entries(module) > ENTRIES and done:
            total += last.times(shapes[key] * _work(module) / done)
            continue
        last, done = timed(partial(work, module)), _work(module)
        total += last.times(shapes[key])
    return total


def _alike(module: Module) -> tuple[str, tuple[int, ...], int]:
    return module.kind, module.shape, module.n_heads


def _work(module: Module) -> float:
    """What the decompositions of a matrix cost, up to a factor."""
    return float(_entries(module) * min(module.shape)) if len(module.shape) == 2 else 0.0


def _entries(module: Module) -> int:
    return int(torch.Size(module.shape).numel())


def _resident() -> int:
    """Bytes that this process holds now; its peak so far where the system tells that alone."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
