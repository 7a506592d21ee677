"""How fast this machine computes: something timed, or a few seconds of a model that is a configuration and no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tv.architecture.anatomy import Architecture
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.stand_in import stand_in
from tv.errors import CheckpointError, InputError, first_line
from tv.prompts.encoding import Encoded

#: A forward pass is tried on this many tokens, for about so many seconds: then it ends behind the block where it is.
TOKENS, SECONDS = 256, 3.0
#: Rows of logits that are tried: few are slower, since they wait for the matrix.
_ROWS = 128


@dataclass(frozen=True)
class Pace:
    """Seconds that something took here: of all CPUs together, and on the clock."""

    cpu: float
    wall: float

    def times(self, n: float) -> Pace:
        """So many times as long."""
        return Pace(self.cpu * n, self.wall * n)

    def __add__(self, other: Pace) -> Pace:
        return Pace(self.cpu + other.cpu, self.wall + other.wall)

    def without(self, part: Pace) -> Pace:
        """What is left beside a part of it; nothing where the part seemed to take as long."""
        return Pace(max(0.0, self.cpu - part.cpu), max(0.0, self.wall - part.wall))


NOTHING = Pace(0.0, 0.0)


@dataclass(frozen=True)
class Trial:
    """What a model takes here: a token in all its blocks, one token of each prompt of a batch, and a row of logits."""

    token: Pace
    step: Pace
    logits: Pace


def timed(work: Callable[[], object]) -> Pace:
    """What a call takes."""
    clock = _Clock()
    work()
    return clock.read()


def some_of(encoded: Sequence[Encoded], most: int) -> list[Encoded]:
    """Prompts to try: those nearest to the middle length, `TOKENS` tokens of them, at most so many prompts."""
    some, tokens = list[Encoded](), 0
    by_length = sorted(encoded, key=lambda item: len(item.ids))
    middle = len(by_length[len(by_length) // 2].ids)
    for item in sorted(by_length, key=lambda item: abs(len(item.ids) - middle)):
        if tokens >= TOKENS or len(some) == most:
            break
        some.append(item)
        tokens += len(item.ids)
    return some


def tried(checkpoint: Checkpoint, encoded: Sequence[Encoded], most: int, dtype: str, device: str) -> Trial:
    """Try a model of a configuration, without its weights, on prompts of the lengths of these.

    Args:
        checkpoint: Whose configuration it is.
        encoded: The prompts; their tokens do not matter.
        most: Prompts in a batch.
        dtype: That models compute in.
        device: Where it computes.

    Raises:
        InputError: It cannot be tried: too little memory, or a class that computes nothing without its weights.
    """
    architecture, some = checkpoint.architecture, some_of(encoded, most)
    generator = torch.Generator().manual_seed(0)
    words = min(architecture.vocab_size, TOKENS)
    ids = torch.randint(words, (len(some), max(len(item.ids) for item in some)), generator=generator).to(device)
    try:
        model = stand_in(checkpoint.config, getattr(torch, dtype), device)
        _blocks(model, architecture, ids[:, :2])  # the first call of a process is slower
        token = _blocks(model, architecture, ids)
        step = _blocks(model, architecture, ids[:, :1])
        unembed = model.get_submodule(architecture.unembed)
        rows = torch.zeros(_ROWS, architecture.d_model, dtype=model.dtype, device=device)
        with torch.inference_mode():
            timed(lambda: unembed(rows[:1]))
            logits = timed(lambda: unembed(rows)).times(1 / _ROWS)
    except InputError:
        raise
    except Exception as error:  # a class may need anything that is not there
        raise CheckpointError(f"{checkpoint.source}: no forward pass can be tried: {first_line(error)}") from error
    return Trial(token.times(1 / ids.numel()), step + logits.times(len(some)), logits)


def _blocks(model: PreTrainedModel, architecture: Architecture, ids: torch.Tensor) -> Pace:
    """All blocks on all these tokens. Where that takes long, the first ones are run, and the others count like them."""
    run = _Blocks(len(architecture.blocks))
    with ExitStack() as hooks, torch.inference_mode():
        paths = [block.path for block in architecture.blocks]
        hooks.callback(model.get_submodule(paths[0]).register_forward_pre_hook(run.begin).remove)
        for path in paths:
            hooks.callback(model.get_submodule(path).register_forward_hook(run.end).remove)
        with suppress(_EnoughError):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    return run.pace


class _EnoughError(Exception):
    """Ends a forward pass behind its last block, or where it has taken long enough."""


@dataclass
class _Blocks:
    """The blocks of a forward pass that are done, and the time they took."""

    n: int
    done: int = 0
    clock: _Clock = field(default_factory=lambda: _Clock())
    pace: Pace = NOTHING

    def begin(self, *_: Any) -> None:
        self.clock = _Clock()

    def end(self, _module: nn.Module, *_: Any) -> None:
        self.done += 1
        taken = self.clock.read()
        self.pace = taken.times(self.n / self.done)
        if self.done == self.n or taken.wall > SECONDS:
            raise _EnoughError


class _Clock:
    """Time since it was made. Reading it waits for the GPU."""

    def __init__(self) -> None:
        _wait()
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> Pace:
        _wait()
        return Pace(time.process_time() - self.cpu, time.perf_counter() - self.wall)


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
