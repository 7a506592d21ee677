"""What a plan's capture and attribution take on this machine, and how much of it each of several workers has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from probes.attribution.metric import answerable
from probes.attribution.packing import FEWEST, MOST
from probes.capture.noise_floor import has_noise_floor
from probes.capture.runner import shards
from probes.forecast import attribution_work, capture_forwards
from probes.planning import Plan
from probes.trial import Pace, tried
from tv.prompts.encoding import Encoded, padded_tokens, positions
from tv.runtime.compute import Compute
from tv.runtime.workers import share_of_threads

#: Methods whose tasks are batches of prompts. Of the others a task is a row of several prompts under many variants.
_BY_BATCH = ("path", "patch", "gradient")


@dataclass(frozen=True)
class Step:
    """What one step takes, of all tuned models together.

    Attributes:
        name: As in `Plan.forwards`.
        cpu: Seconds of all CPUs together.
        wall: Seconds on the clock where one device does it all.
        each: Seconds on the clock that a worker is busy where all share it; None where one process does it.
    """

    name: str
    cpu: float
    wall: float
    each: float | None


def steps_of(plan: Plan, compute: Compute = Compute()) -> list[Step]:
    """The seconds of a plan's steps, from a trial of a few seconds on a model of the same shapes.

    Loading and proving the pair, statistics, weights, link and report come on top; each worker loads the pair.

    Args:
        plan: Its prompts' lengths are known.
        compute: Device, dtype and workers. A worker is taken to be this machine with the worker's share of its threads.

    Returns:
        A row for each step; none where the lengths are unknown, or each model reads its own tokens.

    Raises:
        InputError: The model cannot be tried here.

    Examples:
        >>> import probes
        >>> steps = steps_of(probes.plan("data/suites/demo.yaml"), Compute(workers=2))
        >>> {step.name: step.each is not None for step in steps[:3]}
        {'capture': True, 'noise floor': False, 'endpoints': True}
    """
    suite, base, encoded = plan.given.suite, plan.given.base, plan.given.encoded
    if not encoded or suite.tokenizer == "own":
        return []
    device = compute.tensor_device
    with _threads(share_of_threads(compute)):
        trial = tried(base, encoded, suite.batch_size, compute.dtype, device)
    n, workers = len(suite.tuned), compute.workers if compute.elsewhere else 1

    def step(name: str, pace: Pace, pieces: int) -> Step:
        each = pace.wall * math.ceil(pieces / workers) / pieces if pieces else None
        return Step(name, pace.cpu, pace.wall, each)

    padded = partial(padded_tokens, batch_size=suite.batch_size, padded=base.architecture.padded)
    tokens = padded(encoded)
    bare = trial.token.times(tokens) + trial.logits.times(tokens)
    first, *_ = suite.tuned
    found = [
        step(
            "capture",
            bare.times(2 * n * capture_forwards(suite, encoded)),
            len(shards(encoded, suite, first, base.architecture, True)),
        )
    ]
    if has_noise_floor(suite, compute.device):
        found.append(step("noise floor", bare.times(2 + 2 * ("gates" in suite.measure)), 0))
    if suite.attribute is not None:
        usable = answerable(encoded, suite.attribute.metric)
        read = sum(len(positions(item, "target")) for item in usable)
        blocks, logits = trial.token.times(n * padded(usable)), trial.logits.times(n * read)
        for work in attribution_work(suite, base.architecture, len(encoded)):
            some = usable[: suite.attribute.curve_prompts] if work.name == "curves" else usable
            taken = blocks.times(work.blocks) + logits.times(work.logits)
            found.append(step(work.name, taken, _pieces(work.name, some, suite.batch_size)))
    return found


def _pieces(name: str, encoded: Sequence[Encoded], batch_size: int) -> int:
    """Tasks that a step has at least."""
    if name.partition(" ")[0] in _BY_BATCH:
        return math.ceil(len(encoded) / batch_size)
    row = min(MOST, max(FEWEST, 4 * max(len(item.ids) for item in encoded)))
    return math.ceil(sum(len(item.ids) for item in encoded) / row)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
