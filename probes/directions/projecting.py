"""How much of the behaviour change lives in the leading directions of Δh: only their part is patched into the base.

The base runs with h + P Δh at every position of one layer, P the projection on r directions. These are made on one
half of the clusters and measured on the other, both ways, so that each prompt is measured by directions that it had no
part in. With as many directions as dimensions the whole of Δh is patched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.halves import halves
from probes.attribution.metric import Metric
from probes.capture.editing import edited
from probes.capture.pair import Pair
from probes.capture.skipping import recording, skipping
from probes.directions.states import Place, each_batch
from tv.prompts.encoding import Batch, Encoded, batches

Floats = NDArray[np.float64]
Basis = Float[Tensor, "d d"]
#: Which directions are patched: those of Δh, all but those, those of the base's states, random ones.
DELTA, COMPLEMENT, STATES, RANDOM = "delta", "complement", "states", "random"


@dataclass(frozen=True)
class Patched:
    """The metric of every prompt with r directions of Δh patched at one place."""

    place: Place
    basis: str
    rank: int
    draw: int
    effects: Floats  # (prompts,): patched − base


@dataclass(frozen=True)
class Curve:
    """All that was patched, and the whole change."""

    prompts: tuple[Encoded, ...]
    whole: Floats  # (prompts,): tuned − base
    patched: Sequence[Patched]


def ranks_of(d_model: int) -> list[int]:
    """1, 2, 4, … and d_model.

    Examples:
        >>> ranks_of(160)
        [1, 2, 4, 8, 16, 32, 64, 128, 160]
    """
    return [*(2**i for i in range(d_model.bit_length()) if 2**i < d_model), d_model]


@torch.inference_mode()
def curve(
    pair: Pair,
    encoded: Sequence[Encoded],
    metric: Metric,
    places: Sequence[Place],
    *,
    draws: int = 2,
    batch_size: int = 16,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> Curve:
    """The metric as growing projections of Δh are patched into the base.

    Args:
        pair: Both models.
        encoded: The prompts; at least four clusters.
        metric: One number a prompt.
        places: Sites and layers.
        draws: Of random directions.
        batch_size: Prompts of a forward.
        seed: Of the halving and of random directions.
        tell: Called with the batches done, and how many there are.

    Returns:
        One `Patched` for each place, basis, rank and draw. Memory: two d_model × d_model matrices a place and half.
    """
    clusters = [item.prompt.cluster or item.prompt.id for item in encoded]
    first = next(halves(clusters, seed))
    sides = [[item for item, there in zip(encoded, side, strict=True) if there] for side in (first, ~first)]
    made = [_bases(pair, side, places, draws, batch_size, seed) for side in sides]
    done, several = 0, [batches(side, batch_size, pair.pad_id) for side in sides]
    total = sum(map(len, several))
    found: dict[tuple[Place, str, int, int], list[Floats]] = {}
    order, whole = [], []
    for bases, group in zip(reversed(made), several, strict=True):
        for batch in group:
            order += list(batch.encoded)
            for key, values in _batch(pair, batch, metric, bases):
                if key is None:
                    whole.append(values)
                else:
                    found.setdefault(key, []).append(values)
            done += 1
            tell(done, total)
    return Curve(
        tuple(order),
        np.concatenate(whole),
        [Patched(*key, np.concatenate(values)) for key, values in found.items()],
    )


def _bases(
    pair: Pair, encoded: Sequence[Encoded], places: Sequence[Place], draws: int, batch_size: int, seed: int
) -> Mapping[Place, Mapping[tuple[str, int], Basis]]:
    """By place: all directions in order, of Δh, of the base's states around their mean, and random ones."""
    moments: dict[Place, dict[str, Any]] = {}
    for states in each_batch(pair, encoded, places, positions="all", batch_size=batch_size):
        for place in places:
            delta, base = states.delta(place).double(), states.base[place].double()
            sums = moments.setdefault(place, {"delta": 0.0, "base": 0.0, "sum": 0.0, "n": 0})
            sums["delta"] = sums["delta"] + delta.T @ delta
            sums["base"] = sums["base"] + base.T @ base
            sums["sum"] = sums["sum"] + base.sum(0)
            sums["n"] += len(base)
    found = {}
    for place, sums in moments.items():
        mean = sums["sum"] / sums["n"]
        around = sums["base"] - sums["n"] * torch.outer(mean, mean)
        made = {(DELTA, 0): _ordered(sums["delta"]), (STATES, 0): _ordered(around)}
        for draw in range(draws):
            generator = torch.Generator().manual_seed(seed + draw)
            noise = torch.randn(len(mean), len(mean), generator=generator, dtype=torch.float64)
            made[RANDOM, draw] = torch.linalg.qr(noise).Q.float()
        found[place] = made
    return found


def _ordered(moment: Float[Tensor, "d d"]) -> Basis:
    return torch.linalg.eigh(moment).eigenvectors.flip(1).float()


def _batch(
    pair: Pair, batch: Batch, metric: Metric, bases: Mapping[Place, Mapping[tuple[str, int], Basis]]
) -> Iterator[tuple[tuple[Place, str, int, int] | None, Floats]]:
    """The change of the metric of one batch: the whole (no key), and with each projection patched."""
    outputs: dict[int, Any] = {}
    with recording(pair.base, pair.architecture, outputs):
        start = metric.of(pair.base, batch).double()
    yield None, (metric.of(pair.tuned, batch).double() - start.to(pair.tuned.device)).cpu().numpy()
    (states,) = each_batch(pair, batch.encoded, list(bases), positions="all", batch_size=len(batch.encoded))
    assert states.encoded == batch.encoded
    at = states.text * batch.input_ids.shape[1] + states.pos
    for place, made in bases.items():
        for (name, draw), basis in made.items():
            for rank in ranks_of(len(basis)):
                if rank == len(basis) and name != DELTA:  # the same for all of them
                    continue
                chosen = basis[:, :rank]
                part = states.delta(place) @ chosen @ chosen.T
                steps = {name: part} | ({COMPLEMENT: states.delta(place) - part} if name == DELTA else {})
                for kind, step in steps.items():
                    if kind == COMPLEMENT and rank == len(basis):
                        continue
                    values = _with(pair, batch, metric, place, at, step, outputs)
                    yield (place, kind, rank, draw), (values - start).cpu().numpy()


def _with(
    pair: Pair, batch: Batch, metric: Metric, place: Place, at: Tensor, step: Tensor, outputs: dict[int, Any]
) -> Tensor:
    """The metric with a step added at one place of the base."""
    n = batch.input_ids.numel()

    def edit(value: Tensor) -> Tensor:
        moved = torch.zeros(n, value.shape[1], dtype=step.dtype).index_copy(0, at, step)
        return value + moved.to(value)

    with (
        skipping(pair.base, pair.architecture, outputs, place[1]),
        edited(pair.base, pair.architecture, *place, edit),
    ):
        return metric.of(pair.base, batch).double()
