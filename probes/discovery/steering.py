"""A vector added to the states of a model at one depth, at every place that it reads while the context lasts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from probes.capture.editing import edited
from probes.discovery.sides import Model, kl_at_each
from tv.prompts.encoding import Batch

Floats = NDArray[np.float64]

#: Lengths that are tried, in the mean ‖h‖ of the base there.
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


def steered(model: Model, vector: Float[Tensor, " d_model"], depth: int) -> AbstractContextManager[None]:
    """A vector is added to what enters the block of this depth, below the number of blocks."""
    return edited(model.live, model.architecture, "resid_pre", depth, lambda state: state + vector.to(state))


def kl_of(model: Model, vector: Float[Tensor, " d_model"], depth: int, texts: Sequence[tuple[Batch, Tensor]]) -> Floats:
    """By text, the mean KL of the next token that steering does, nats, from the logits that the model gives without."""
    found = list[float]()
    with steered(model, vector, depth):
        for batch, plain in texts:
            kl = kl_at_each(plain, model.read(batch).logits)
            found += [float(own.mean()) for own in kl.split([len(item.ids) for item in batch.encoded])]
    return np.array(found)


def length_of(kl: Sequence[float], scales: Sequence[float], wanted: float) -> float:
    """The length at which steering does so much KL: between lengths that were tried, in logarithms.

    The longest that was tried where none does as much, the shortest where all do more.

    Examples:
        >>> round(length_of([0.01, 0.04, 0.16], [1.0, 2.0, 4.0], 0.08), 2)
        2.83
    """
    above = next((i for i, value in enumerate(kl) if value >= wanted), None)
    if above is None or above == 0:
        return scales[-1 if above is None else 0]
    near = slice(above - 1, above + 1)
    return float(np.exp(np.interp(np.log(wanted), np.log(np.maximum(kl[near], 1e-30)), np.log(scales[near]))))
