"""Which latents are new, lost or shifted: only what is beyond every latent of both null pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.directions.features.latents import Floats, Latents

#: A latent that fires at fewer places says too little of itself: it counts as dead.
FIRES = 16
#: A model has a latent of the other where it has at least this share of it (arXiv 2504.02922 takes 0.5 of what is
#: written).
HAS = 0.5
#: What moved changes Δh by so many times what any latent of the nulls does: another draw of random T, or another
#: training, has another extreme.
BEYOND = 1.5
#: The classes of what moved, in the order of tables.
MOVED = ("new", "lost", "shifted")


@dataclass(frozen=True)
class Thresholds:
    """What the latents of null pairs reach."""

    change: float  # the largest change
    cosine: float  # the least cosine of both decoders; NaN where the form has none
    nu_base: float  # the least share of a tuned latent that base has
    nu_tuned: float  # and the other way round


def thresholds(nulls: Sequence[Latents]) -> Thresholds:
    """The extremes over all latents of these null pairs that fire often enough."""
    alive = [(latents, latents.fires >= FIRES) for latents in nulls]
    return Thresholds(
        _extreme(max, [latents.change[at] for latents, at in alive]),
        _extreme(min, [latents.cosine[at] for latents, at in alive]),
        _extreme(min, [shares(latents)[0][at] for latents, at in alive]),
        _extreme(min, [shares(latents)[1][at] for latents, at in alive]),
    )


def shares(latents: Latents) -> tuple[Floats, Floats]:
    """How much of every latent base has, and tuned has: the larger of both ν, so that neither artefact is missed."""
    return (
        np.fmax(latents.nu_error_base, latents.nu_written_base),
        np.fmax(latents.nu_error_tuned, latents.nu_written_tuned),
    )


def classes(latents: Latents, beyond: Thresholds, form: str) -> NDArray[np.str_]:
    """`new lost shifted shared dead`, one of every latent.

    Moved is what changes Δh by more than `BEYOND` times what any latent of the nulls does. Of what moved, *new* is what
    base has less of than `HAS` and than any null latent's; *lost* is what tuned has so little of; *shifted* is another
    latent whose two directions lie further apart than any null latent's. Of the forms without two directions every
    other latent that moved is shifted. All else is *shared*.
    """
    in_base, in_tuned = shares(latents)
    base_least, tuned_least = HAS, HAS
    if form != "delta":  # the shares of what rounding or noise writes say nothing: they are of nothing
        base_least, tuned_least = np.fmin(HAS, beyond.nu_base), np.fmin(HAS, beyond.nu_tuned)
    found = np.full(len(latents.fires), "shared", dtype="<U8")
    moved = latents.change > BEYOND * beyond.change
    apart = latents.cosine < beyond.cosine if form == "crosscoder" else np.ones(len(found), bool)
    found[moved & apart] = "shifted"
    found[moved & (in_tuned < tuned_least)] = "lost"
    found[moved & (in_base < base_least)] = "new"
    found[latents.fires < FIRES] = "dead"
    return found


def ranks(latents: Latents, found: NDArray[np.str_]) -> NDArray[np.int64]:
    """The place of every latent: what moved first, and in either part those that carry most of Δh."""
    group = np.where(np.isin(found, MOVED), 0, np.where(found == "dead", 2, 1))
    order = np.lexsort((-np.nan_to_num(latents.energy), group))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def _extreme(of: object, parts: Sequence[Floats]) -> float:
    values = np.concatenate(parts) if parts else np.zeros(0)
    values = values[~np.isnan(values)]
    return float("nan") if not len(values) else float(of(values))  # type: ignore[operator]
