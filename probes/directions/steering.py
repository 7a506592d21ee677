"""One model under many vectors: the metric of every prompt, and how far its next tokens move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from probes.attribution.forwards import Floats, Model
from probes.attribution.metric import Logits
from probes.attribution.work import Work
from probes.capture.editing import edited
from probes.capture.skipping import recording, skipping
from probes.directions.states import Place
from tv.prompts.encoding import Batch, Encoded, Positions, batches, positions

#: Bytes of a batch's block outputs that wait to be used again.
_WAITING = 2**27
#: What is done with a vector: added, projected out, or its coordinate set to the other model's mean.
Op = Literal["add", "ablate", "clamp"]


@dataclass(frozen=True, eq=False)
class Steer:
    """A vector at a place, and what is done with it there.

    `dose` is a multiple of what is done at 1, and `wanted` the coordinate that `clamp` leads to.
    """

    place: Place
    vector: Float[Tensor, " d_model"]
    op: Op = "add"
    dose: float = 1.0
    wanted: float = 0.0

    def __call__(self, state: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """The states as they are steered, in float32."""
        own = state.float()
        if self.op == "add":
            return own + self.dose * self.vector.to(own)
        unit = normalize(self.vector.to(own), dim=0)
        along = own @ unit
        return own + self.dose * ((self.wanted if self.op == "clamp" else 0.0) - along)[:, None] * unit

    @property
    def first(self) -> int:
        """No block before it computes anything else: what a block gives is changed behind it."""
        return self.place[1] + (self.place[0] == "resid_post")


#: For the prompts that are given half 0's vector, and for those that are given half 1's.
Steers = tuple[Steer, Steer]


@dataclass(frozen=True)
class Steered:
    """The metric of every prompt under each vector, and KL(the model ‖ the model steered), nats a token."""

    start: Floats  # (prompts,) without any
    values: Floats  # (vectors, prompts)
    kl: Floats  # (vectors, prompts)


def steered(
    work: Work,
    model: Model,
    steers: Sequence[Steers],
    given: NDArray[np.int64],
    at: Positions,
    told: Callable[[int], None] | None = None,
) -> Steered:
    """One model of a pair as it is, and steered in every way in turn: a forward pass each.

    Args:
        work: The pair, the prompts and the metric.
        model: "base" or "tuned".
        steers: The ways.
        given: (prompts,) which of the two vectors of a way each prompt of the work is given.
        at: The positions that are steered.
        told: Called with the number of ways whose batch is done.

    Returns:
        Values in the order of the work's prompts. The KL is a mean over the positions that the metric reads, or, where
        it may read any, those that predict the target.
    """
    place = {name: i for i, name in enumerate(work.prompts)}
    shape = len(steers), len(work.prompts)
    start, values, kl = np.full(shape[1], np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    for batch in batches(work.encoded, _many(work), work.pair.pad_id):
        own = np.array([place[item.prompt.id] for item in batch.encoded])
        start[own], values[:, own], kl[:, own] = _of_batch(work, model, steers, batch, given[own], at, told)
    return Steered(start, values, kl)


def n_batches(work: Work) -> int:
    """How many batches the prompts are read in."""
    return -(-len(work.encoded) // _many(work))


def _many(work: Work) -> int:
    """Prompts of a batch: as many as let the outputs of all blocks wait, within what the metric's batches have."""
    longest = max(len(item.ids) for item in work.encoded)
    outputs = 4 * longest * work.pair.architecture.d_model * work.pair.architecture.n_layers
    return int(np.clip(_WAITING // outputs, work.batch_size, 4 * work.batch_size))


@torch.inference_mode()
def _of_batch(
    work: Work,
    name: Model,
    steers: Sequence[Steers],
    batch: Batch,
    given: NDArray[np.int64],
    where: Positions,
    told: Callable[[int], None] | None,
) -> tuple[Floats, Floats, Floats]:
    model = {"base": work.pair.base, "tuned": work.pair.tuned}[name]
    architecture, metric = work.pair.architecture, work.metric
    marked = [_marked(batch, given == half, where) for half in (0, 1)]
    outputs: dict[int, object] = {}
    with recording(model, architecture, outputs):
        logits = metric.logits(model, batch)
    start, plain = metric.values(logits, batch), _log_probs(work, logits, batch)
    values, kl = [], []
    for both in steers:
        with ExitStack() as steering:
            for steer, at in zip(both, marked, strict=True):
                if at.any():
                    steering.enter_context(edited(model, architecture, *steer.place, steer, at))
            steering.enter_context(skipping(model, architecture, outputs, min(steer.first for steer in both)))
            logits = metric.logits(model, batch)
        values.append(metric.values(logits, batch).double().cpu().numpy())
        moved = _log_probs(work, logits, batch)
        kl.append([float((a.exp() * (a - b)).sum(-1).mean()) for a, b in zip(plain, moved, strict=True)])
        if told:
            told(1)
    return start.double().cpu().numpy(), np.array(values), np.array(kl)


def _marked(batch: Batch, rows: NDArray[np.bool_], where: Positions) -> Bool[Tensor, "batch pos"]:
    """The positions of these prompts."""
    at = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    for i in np.flatnonzero(rows):
        at[i, list(positions(batch.encoded[i], where))] = True
    return at


def _log_probs(work: Work, logits: Logits, batch: Batch) -> list[Tensor]:
    """By prompt, the log probabilities at the positions that the metric reads."""
    reads = work.metric.reads or _predicting
    return [row[list(reads(item))].double().log_softmax(-1) for row, item in zip(logits, batch.encoded, strict=True)]


def _predicting(item: Encoded) -> Sequence[int]:
    return positions(item, "target")
