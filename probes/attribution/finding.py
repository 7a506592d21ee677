"""What a discovery found, as a metric of effects reads it: at which places, and along which tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tv.prompts.encoding import Batch, Encoded
from tv.prompts.read_logits import ReadLogits

#: How a suite names a metric that is a finding: `discovered:PART/READING`.
DISCOVERED = "discovered:"


@dataclass(frozen=True, eq=False)
class Finding:
    """Places of prompts, and tokens with a weight each; without tokens, how far the predictions there lie apart."""

    places: Mapping[str, tuple[int, ...]]  # by prompt; one without any is not read
    tokens: NDArray[np.int64]
    weights: Float[np.ndarray, " tokens"]
    vocab: int  # tokens that both models have: the first so many

    def reads(self, item: Encoded) -> tuple[int, ...]:
        """The places of a prompt."""
        return self.places[item.prompt.id]

    def along(self, logits: Float[Tensor, "batch pos vocab"] | ReadLogits, batch: Batch) -> Float[Tensor, " batch"]:
        """Σ weight × (logit − mean over the vocabulary), a mean over each prompt's places."""
        found, ids = [], torch.from_numpy(self.tokens)
        for row, item in zip(logits, batch.encoded, strict=True):
            read = row[list(self.reads(item)), : self.vocab].double()
            weights = torch.from_numpy(self.weights).to(read)
            found.append(((read[:, ids.to(read.device)] - read.mean(1, keepdim=True)) @ weights).mean())
        return torch.stack(found)
