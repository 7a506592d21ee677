"""From a pair of checkpoints to its tuning vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple
from typing import Any

from torch import Tensor

from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.opening import Source
from tv.checkpoints.pairing import WeightPair, open_pair
from tv.checkpoints.parameters import Rows, rows_of
from tv.checkpoints.vector import TuningVector
from tv.errors import CheckpointError


def extract(base: Source, tuned: Source) -> TuningVector:
    """The tuning vector T = θ_tuned − θ_base, one parameter at a time, read on demand.

    It moves what training can change: parameters, and buffers that the files of both keep (a layer's scale, a router's
    correction). What the files hold outside the model, such as heads that predict further tokens, stays the base's.

    Args:
        base: The pretrained model: whatever `open_checkpoint` opens.
        tuned: The fine-tuned one. An adapter or a tuning vector is taken over `base`.

    Returns:
        T in float32; of a grown vocabulary, the rows that both models have.

    Raises:
        CheckpointError: The two do not belong together. Reading T raises it where a tensor holds NaN or Inf.

    Source: arXiv 2212.04089 §2.

    Examples:
        >>> medical = tv.extract("data/models/base", "data/models/medical")
        >>> round(medical.norm(), 1), round((-medical).cosine(medical), 3)
        (25.7, -1.0)
    """
    pair = open_pair(base, tuned)
    left, right = pair.base, pair.tuned

    def read(name: str) -> Tensor:
        delta = right.delta(name, left)
        if name not in left.names and not bool(delta.isfinite().all()):  # parameters are checked as they are read
            raise CheckpointError(
                f"{right.source}: {name!r} is finite on one side and not on the other, so it has no T"
            )
        return delta

    def read_expert(name: str, index: int) -> Tensor:
        return right.delta(name, left, index)

    def open_rows(name: str, index: int) -> Rows:
        known = name in left.names or index >= 0
        return right.delta_rows(name, left, index) if known else rows_of(read(name))

    shapes = {
        name: _common(left.info(name).shape, right.info(name).shape) for name in left.values if name in right.values
    }
    provenance: dict[str, Any] = {"base": _origin(left), "tuned": _origin(right), "noise": _noise(pair, shapes)}
    if left.architecture.tied:
        provenance["tied"] = [f"{left.architecture.embed}.weight", f"{left.architecture.unembed}.weight"]
    return TuningVector(shapes, read, provenance, read_expert, open_rows)


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the rows that both have."""
    return (min(left[0], right[0]), *left[1:]) if left else left


def _noise(pair: WeightPair, names: Iterable[str]) -> dict[str, Any]:
    """The rounding in T: (in units of ‖W‖, in units of ‖T‖) of most parameters, and of the others."""
    noises = {name: astuple(pair.noise(name)) for name in names}
    most = Counter(noises.values()).most_common(1)[0][0]
    return {"most": most, "others": {name: noise for name, noise in noises.items() if noise != most}}


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where a side came from. `other_dtypes` names the tensors that are stored in another dtype than most."""
    others = {name: checkpoint.info(name).dtype for name in checkpoint.values}
    others = {name: dtype for name, dtype in others.items() if dtype != checkpoint.dtype}
    return {"source": checkpoint.source, **checkpoint.fingerprint(), "other_dtypes": others}
