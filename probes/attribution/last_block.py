"""The last block where it is read: what serves one position alone is not computed at positions that no metric reads.

Behind the last block only some positions' logits are read. Keys and values are needed everywhere, and queries, what
attention writes, and the MLP only there; their products give 0 elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.attribution.metric import Metric
from tv.architecture.anatomy import Architecture
from tv.checkpoints.streamed import is_streamed
from tv.errors import first_line
from tv.prompts.encoding import Batch

if TYPE_CHECKING:
    from probes.capture.pair import Pair

#: The matrices of a component whose output at one position reaches that of no other.
_ALONE = {"attn": {"q", "o"}, "mlp": {"gate", "up", "down"}}
#: How far a value may be from that of all positions, as a share of the largest: what rounding does.
NEAR = 1e-5


def alone(architecture: Architecture) -> tuple[str, ...]:
    """The paths of the last block's products that may be made where the logits are read, and nowhere else."""
    last = architecture.n_layers - 1
    may: dict[str, bool] = {}
    for module in architecture.modules:
        if module.layer == last and module.kind == "linear":
            fits = module.expert < 0 and module.name in _ALONE.get(module.component, ())
            may[module.path] = may.get(module.path, True) and fits  # fused with keys and values, it may not
    return tuple(path for path, fits in may.items() if fits)


def shortened(metric: Metric, pair: Pair, batch: Batch) -> Metric:
    """The metric with last block and logits made where it reads, if that is the same for both models on these prompts.

    If only one of the two is, only that.
    """
    if metric.reads is None or any(map(is_streamed, pair.models)):
        return metric
    last, logits = {"last": alone(pair.architecture)}, {"alone": metric.by_position}
    ways = [replace(metric, **way) for way in (last | logits, logits, last)]
    with torch.inference_mode():
        whole = [metric.of(model, batch) for model in pair.models]
        return next((short for short in ways if short == metric or _is_same(short, pair, batch, whole)), metric)


def _is_same(metric: Metric, pair: Pair, batch: Batch, wanted: Sequence[Tensor]) -> bool:
    try:
        return all(_near(metric.of(model, batch), of_all) for model, of_all in zip(pair.models, wanted, strict=True))
    except Exception as error:  # what calls a product otherwise may raise anything
        logging.getLogger(__name__).info("read everywhere: %s", first_line(error))
        return False


def _near(found: Tensor, wanted: Tensor) -> bool:
    largest = max(1.0, float(wanted.nan_to_num().abs().max()))
    return torch.allclose(found, wanted, rtol=0, atol=NEAR * largest, equal_nan=True)
