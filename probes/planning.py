"""What a run would read, hold and compute, from the configuration alone: `probes run --plan`.

No weight is loaded, and none has to be there. The counts are those of the functions that the run itself calls; which
components share a module's output, and what is left out, only the live models prove.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from probes.attribution.attributor import require_precision, steps
from probes.attribution.curves import sizes_tried
from probes.attribution.integrand import KEPT
from probes.attribution.metric import Reads, read_by, require_answers, require_metric
from probes.attribution.scores import SCORES
from probes.attribution.units import components
from probes.capture.estimate import estimate
from probes.capture.hooks.plan import plan as reads_of
from probes.capture.loading import Pairs
from probes.capture.noise_floor import has_noise_floor
from probes.capture.pair import require_sites
from probes.capture.runner import sites_of, with_bases
from probes.measures.ledger import most_bytes
from probes.methods import Cost
from probes.suite import Suite, load_suite
from tv.architecture.anatomy import Architecture
from tv.architecture.in_words import composition
from tv.architecture.sizes import experts_per_token
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.coverage import Coverage, coverage
from tv.checkpoints.location import place_of
from tv.checkpoints.opening import outline
from tv.checkpoints.tokenizers import tokenizer_digest
from tv.errors import CheckpointError, InputError
from tv.prompts.encoding import Encoded, batches, encode
from tv.prompts.files import Prompt, read_prompts
from tv.runtime.compute import Compute

#: Of one forward, how many copies of its widest block's outputs a device holds: in, out, and what is between.
_COPIES = 2


@dataclass(frozen=True)
class Given:
    """What a plan is made from."""

    suite: Suite
    base: Checkpoint  # its configuration; its weights may be absent
    encoded: Sequence[Encoded]  # none where the prompts' lengths are unknown


@dataclass(frozen=True)
class Plan:
    """What a run would read, hold and compute.

    Attributes:
        architecture: Of the base.
        blocks: The layers by what they consist of, a line.
        modules: How many there are of each (name, kind, shape).
        sites: How many hooks read each site.
        parameters: Numbers in the parameters, by where they are: `total`, `text model`, each part beside it, and `in no
            row` of the table weights.
        uncovered: The same as a sentence; empty where every number is in a row.
        dtype: In which the models compute.
        memory: Bytes at the peak, by what takes them, on the device that both models share.
        forwards: Forward passes per prompt, by stage or method.
        tables: Bytes on disk of each table of activations; empty where the prompts' lengths are unknown.
        prompts: How many there are.
        tokens: Tokens in all prompts; 0 where their lengths are unknown.
        notes: What a reader should know, a line each.
        given: What it is made from.

    Examples:
        >>> plan = probes.plan("data/suites/demo.yaml")
        >>> plan.blocks, plan.parameters["total"] == plan.parameters["text model"]
        ('6 layers: 6 × attn + mlp', True)
    """

    architecture: Architecture
    blocks: str
    modules: Mapping[tuple[str, str, tuple[int, ...]], int]
    sites: Mapping[str, int]
    parameters: Mapping[str, int]
    uncovered: str
    dtype: str
    memory: Mapping[str, int]
    forwards: Mapping[str, Cost]
    tables: Mapping[str, int]
    prompts: int
    tokens: int
    notes: tuple[str, ...]
    given: Given = field(repr=False)

    @property
    def peak(self) -> int:
        """Bytes at the peak: what is there all the time, and the larger of capture and attribution."""
        phases = [size for name, size in self.memory.items() if name in _PHASES]
        return sum(size for name, size in self.memory.items() if name not in _PHASES) + max(phases, default=0)


#: What is held in turn, not at once.
_PHASES = ("capture of a batch", "noise floor", "attribution of a batch", "path")


def plan(
    suite: str | Path | Mapping[str, Any],
    *,
    base: str | Path | None = None,
    tuned: str | Path | Mapping[str, str | Path] | None = None,
    settings: Mapping[str, Any] | None = None,
    tokens: int | None = None,
    compute: Compute = Compute(),
) -> Plan:
    """Plan a run from its suite and the base's configuration. No weight is loaded.

    Args:
        suite: As in `probes.run`, and so are base, tuned, settings and compute.
        base: A directory with a config.json, that file, or a hub id. Weights and tokenizer may be absent.
        tuned: Taken to be of the base's architecture; its weights are not read.
        settings: Keys that win over the suite's.
        tokens: The tokens of each prompt, where the base has no tokenizer.
        compute: The dtype that models compute in.

    Returns:
        What the run would read, hold and compute.

    Raises:
        InputError: Bad input, in one line, as the run would say it.

    Examples:
        >>> plan = probes.plan("data/suites/demo.yaml", settings={"measure": ["gates"]})
        >>> dict(plan.sites), sorted(plan.tables)
        ({'gate': 6}, ['gates', 'neurons', 'predictions', 'tokens'])
    """
    chosen = load_suite(suite, base=base, tuned=tuned, settings=settings)
    prompts = read_prompts(chosen.prompts)
    if chosen.attribute is not None:
        require_metric(chosen.attribute.metric)
        require_answers(prompts, chosen.attribute.metric)
        require_precision(chosen.attribute, compute.dtype)
    checkpoint = outline(chosen.base)
    architecture = checkpoint.architecture
    require_sites(architecture)
    encoded, notes = _encoded(chosen, prompts, checkpoint, tokens)
    covered = coverage(checkpoint)
    sites = Counter(site.name for read in reads_of(architecture, sites_of(chosen, architecture)) for site in read.sites)
    tables = estimate(chosen, architecture, encoded, experts_per_token(checkpoint.config)) if encoded else {}
    return Plan(
        architecture,
        composition(architecture),
        Counter((module.name, module.kind, module.shape) for module in architecture.modules),
        sites,
        dict(_parameters(checkpoint, covered)),
        covered.note,
        compute.dtype,
        dict(memory_of(chosen, checkpoint, encoded, compute)),
        dict(_forwards(chosen, architecture)),
        tables if chosen.tokenizer == "base" else {},
        len(prompts),
        sum(len(item.ids) for item in encoded),
        tuple(notes),
        Given(chosen, checkpoint, encoded),
    )


def _encoded(
    suite: Suite, prompts: Sequence[Prompt], base: Checkpoint, tokens: int | None
) -> tuple[list[Encoded], list[str]]:
    """The prompts as tokens, or of the given length; none where neither is known."""
    notes = []
    try:
        encoded = encode(prompts, _tokenizer(suite, base), base.architecture.context) if tokens is None else []
    except InputError as error:
        encoded = []
        notes.append(f"the prompts' lengths are unknown ({error}); --tokens N takes N tokens for each")
    if tokens is not None:
        notes.append(f"every prompt is taken to have {tokens} tokens")
        answer = min(1, tokens - 1)
        encoded = [Encoded(p, (0,) * tokens, tokens - answer, tokens - answer - 1, 0, 0) for p in prompts]
    if suite.generate is not None and encoded:
        more = suite.generate.tokens or 1
        notes.append(f"every continuation is taken to have {more} tokens")
        encoded = [item.followed_by((0,) * more) for item in encoded]
    return encoded, notes


def _tokenizer(suite: Suite, base: Checkpoint) -> PreTrainedTokenizerBase:
    """The base's. Raises CheckpointError where a directory has none: transformers would make one of no vocabulary."""
    here = isinstance(place_of(suite.base), Path)
    if here and (base.path is None or not tokenizer_digest(base)):
        raise CheckpointError(f"{suite.base}: no tokenizer lies there")
    return Pairs(suite).tokenizer


def _parameters(base: Checkpoint, covered: Coverage) -> Iterator[tuple[str, int]]:
    sizes = {name: math.prod(base.info(name).shape) for name in base.names}
    groups = {
        group.path: sum(size for name, size in sizes.items() if f"{name}.".startswith(f"{group.path}."))
        for group in base.architecture.groups
    }
    yield "total", sum(sizes.values())
    yield "text model", sum(sizes.values()) - sum(groups.values())
    yield from groups.items()
    yield "in no row", covered.n_unrowed


def memory_of(
    suite: Suite, base: Checkpoint, encoded: Sequence[Encoded], compute: Compute
) -> Iterator[tuple[str, int]]:
    """Bytes by what takes them. Activations are an estimate, the ledger's bases a bound."""
    size = torch.empty((), dtype=getattr(torch, compute.dtype)).element_size()
    weights = sum(math.prod(base.info(name).shape) for name in (*base.names, *base.beside)) * size
    yield (
        ("the base (the tuned model on the CPU)" if compute.offload else "two models"),
        weights * (2 - compute.offload),
    )
    architecture = base.architecture
    if "ledger" in suite.measure and suite.tokenizer == "base":
        yield "ledger bases, at most", sum(most_bytes(*module.shape) for module in with_bases(architecture))
    if not encoded:
        return
    block = _COPIES * max(_widths(architecture, experts_per_token(base.config)))
    # Logits of both models, as they are computed and in float32.
    logits = architecture.vocab_size * (size + 4)
    batch = _most(encoded, suite.batch_size) * 2 * (logits + block * size)
    yield "capture of a batch", batch
    if has_noise_floor(suite, compute.device):  # its twin starts as a copy, and is float32 of any other dtype
        yield "noise floor", weights // size * 4 + batch
    if suite.attribute is None:
        return
    several = _most(encoded, 4 * suite.batch_size)
    kept = architecture.d_model * architecture.n_layers  # every block's output, to skip the blocks before a swap
    copied = weights if suite.attribute.controls else 0
    rows = partial(_most_logits, encoded, reads=read_by(suite.attribute.metric))
    activations = several * (kept + block) + rows(4 * suite.batch_size) * architecture.vocab_size
    yield "attribution of a batch", copied + activations * size
    if "path" in suite.attribute.methods:
        saved = _COPIES * sum(_widths(architecture, experts_per_token(base.config)))
        # θ(α) beside both models, and T: of all that moved, or where that is much, of one matrix after the other.
        step = weights if weights <= KEPT else size * max(math.prod(m.shape) for m in architecture.modules)
        activations = _most(encoded, suite.batch_size) * saved + rows(suite.batch_size) * architecture.vocab_size
        yield "path", weights + step + activations * size


def _most(encoded: Sequence[Encoded], batch_size: int) -> int:
    """Tokens of the largest batch, padding included."""
    return max(batch.input_ids.numel() for batch in batches(encoded, batch_size, 0))


def _most_logits(encoded: Sequence[Encoded], batch_size: int, reads: Reads | None) -> int:
    """Rows of logits of the largest batch: of all its tokens, or twice those that are read where only these are made.

    Then their probabilities, which a metric makes of them, are as many.
    """
    if reads is None:
        return _most(encoded, batch_size)
    several = batches([item for item in encoded if len(reads(item))], batch_size, 0)
    return max((2 * sum(len({*reads(item)}) for item in batch.encoded) for batch in several), default=0)


def _widths(architecture: Architecture, per_token: int) -> list[int]:
    """What the modules of each block give for a token, entries; of experts those that it is routed to."""
    widths = [architecture.d_model] * architecture.n_layers
    for module in architecture.modules:
        if 0 <= module.layer < architecture.n_layers and module.expert < max(1, per_token):
            widths[module.layer] += module.shape[0]
    return widths


def _forwards(suite: Suite, architecture: Architecture) -> Iterator[tuple[str, Cost]]:
    """Per prompt, of one model or the other, for all tuned models together."""
    n = len(suite.tuned)
    yield "capture", Cost(2 * n)
    if suite.generate is not None and suite.generate.source != "given":
        yield "continuations", Cost(suite.generate.tokens or 1)
    if has_noise_floor(suite, "cpu"):
        yield "noise floor", Cost(2 + 2 * ("gates" in suite.measure))
    if suite.attribute is None:
        return
    for methods, granularity, units in steps(suite.attribute, architecture):
        for method in methods:
            cost = method.costs(architecture, units, suite.attribute)
            if cost is not None:
                yield f"{method.name} {granularity}".strip(), _times(cost, n)
    yield "endpoints", Cost(6 * n)
    if suite.attribute.curves:
        yield "curves", _times(Cost(0, 0, 2 + curve_sets(suite, architecture)), n)


def curve_sets(suite: Suite, architecture: Architecture) -> int:
    """Sets of components that curves move, at most: each value of n of every ranking and random order, both ways."""
    wanted = suite.attribute
    assert wanted is not None
    n = len(components(architecture))
    scores = len(SCORES) if wanted.curve_rankings == "all" else 0
    orders = 2 * len(wanted.methods) + 1 + scores + wanted.curve_draws
    points = len(sizes_tried(n, wanted.curve_points)) - 1
    return 2 * (1 + orders * points)


def _times(cost: Cost, n: int) -> Cost:
    return Cost(n * cost.forwards, n * cost.backwards, None if cost.most is None else n * cost.most)
