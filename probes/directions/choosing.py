"""The layer and the dose that half of the prompts choose, and what the vector does there to the other half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from probes.attribution.effects import FORWARD
from probes.attribution.forwards import Floats, Model
from probes.attribution.work import Work
from probes.directions.placebos import PLACEBOS, placebo
from probes.directions.sources import Making, Vectors
from probes.directions.states import Place
from probes.directions.steering import Op, Steer, Steers, n_batches, steered
from tv.prompts.encoding import Positions

#: Placebos of each kind beside which a dose is chosen: a large one moves a model whichever way it points.
_FEW = 2


@dataclass(frozen=True)
class Wanted:
    """What is asked for; see `probes.directions.declared.direction`."""

    source: str = "mean"
    op: Op = "add"
    site: str = "resid_post"
    layers: tuple[int, ...] = ()
    positions: Positions = "target"
    doses: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    placebos: int = 20
    samples: int = 3
    tokens: int = 16


@dataclass(frozen=True)
class Found:
    """One way: steered from one model."""

    way: str
    chosen: Steers  # by each half
    doses: tuple[float, float]  # of these
    effects: Floats  # (layers, prompts), held out, at dose 1
    kl: Floats
    labels: list[dict[str, Any]]  # of the rows at the chosen layers
    at_chosen: Floats  # (labels, prompts)
    kl_at_chosen: Floats


def one_way(
    work: Work, model: Model, way: str, wanted: Wanted, making: Making, vectors: Vectors, change: Floats
) -> Found:
    """Every layer at dose 1; then, at the layer that each half chooses, doses; then placebos at the dose it chooses."""
    unseen, seen = 1 - making.half, making.half
    doses = tuple(dict.fromkeys((1.0, *wanted.doses)))
    n_placebos = wanted.placebos + _FEW * len(doses)
    tell = _Told(work, 2 * len(vectors) + 2 * len(doses) + 1 + len(PLACEBOS) * n_placebos)
    make = partial(_steers, model, making, wanted.op)

    def run(steers: Sequence[Steers], given: NDArray[np.int64]) -> tuple[Floats, Floats]:
        found = steered(work, model, steers, given, wanted.positions, tell)
        return found.values - found.start if way == FORWARD else found.start - found.values, found.kl

    def best(steers: Sequence[Steers], beside: Sequence[Sequence[Steers]]) -> tuple[int, int]:
        """By what each half itself shows: the steers that bring it nearest to the other model, and placebos less."""
        effects = run([*steers, *(steer for drawn in beside for steer in drawn)], seen)[0]
        found = []
        for half in (making.of_half(0), making.of_half(1)):
            whole = _mean(change[None], half)[0]
            near = 1 - np.abs(1 - _mean(effects, half) / whole) if whole else np.zeros(len(effects))
            noise = near[len(steers) :].reshape(len(steers), -1)
            found.append(int(np.argmax(near[: len(steers)] - (noise.mean(1) if noise.size else 0.0))))
        return found[0], found[1]

    layers = [make((place, place), (vector[0], vector[1]), (1.0, 1.0)) for place, vector in vectors.items()]
    effects, kl = run(layers, unseen)
    first, second = (list(vectors)[i] for i in best(layers, ()))
    at, own = (first, second), (vectors[first][0], vectors[second][1])
    dosed = [make(at, own, (dose, dose)) for dose in doses]
    few = [placebo(kind, -1 - draw, making, at, own, work.seed) for kind in PLACEBOS for draw in range(_FEW)]
    dose_0, dose_1 = (doses[i] for i in best(dosed, [[make(at, v, (dose, dose)) for v in few] for dose in doses]))
    chosen = make(at, own, (dose_0, dose_1))
    steers, labels = [*dosed, chosen], [{"control": "", "draw": -1, "dose": dose} for dose in (*doses, np.nan)]
    for kind in PLACEBOS:
        for draw in range(wanted.placebos):
            drawn = placebo(kind, draw, making, at, own, work.seed)
            steers.append(make(at, drawn, (dose_0, dose_1)))
            labels.append({"control": kind, "draw": draw, "dose": np.nan})
    return Found(way, chosen, (dose_0, dose_1), effects, kl, labels, *run(steers, unseen))


class _Told:
    """Progress over vectors, batch by batch."""

    def __init__(self, work: Work, vectors: int) -> None:
        self._done, self._total, self._tell = 0, vectors * n_batches(work), work.told

    def __call__(self, n: int) -> None:
        self._done += n
        if self._tell:
            self._tell(min(self._done, self._total), self._total)


def _steers(
    model: Model,
    making: Making,
    op: Op,
    places: tuple[Place, Place],
    vectors: tuple[Tensor, Tensor],
    doses: tuple[float, float],
) -> Steers:
    """Each half's vector as it acts on one model: added to the base, taken away from the tuned one."""
    sign = -1.0 if op == "add" and model == "tuned" else 1.0
    other = making.states.tuned if model == "base" else making.states.base
    steers = []
    for half, (place, vector, dose) in enumerate(zip(places, vectors, doses, strict=True)):
        own = other[place][torch.from_numpy(making.of_half(half))].mean(0)
        steers.append(Steer(place, vector, op, sign * dose, float(own @ normalize(vector, dim=0))))
    return steers[0], steers[1]


def _mean(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """(rows,): over these prompts; 0 where none has a value."""
    own = values[:, chosen]
    known = np.isfinite(own)
    return np.where(known, own, 0.0).sum(1) / np.maximum(known.sum(1), 1)
