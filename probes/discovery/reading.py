"""One model on a batch of texts: its residual stream at every token and depth, and the logits that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from probes.capture.pair import Pair
from probes.measures.logit_lens import Reader
from tv.architecture.anatomy import Architecture
from tv.prompts.encoding import Batch


@dataclass(frozen=True)
class Reading:
    """What a model makes of n tokens: those of a batch without its padding, text by text."""

    resid: Float[Tensor, "depth n d_model"]  # what enters the first block, then what each block leaves
    reader: Reader

    @cached_property
    def logits(self) -> Float[Tensor, "n vocab"]:
        """Of the token that follows each."""
        with torch.inference_mode():
            return self.reader.logits(self.resid[-1])


def readers_of(pair: Pair) -> tuple[Reader, Reader]:
    """How base and tuned turn their last residual stream into logits."""
    form = pair.norms[pair.architecture.final_norm]
    base, tuned = (
        Reader.of(model, pair.architecture, form, flow.logit_scale, flow.cap)
        for model, flow in zip(pair.models, pair.flows, strict=True)
    )
    return base, tuned


def read(model: PreTrainedModel, architecture: Architecture, reader: Reader, batch: Batch) -> Reading:
    """One forward pass; the unembedding runs where logits are asked for alone."""
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    with torch.inference_mode(), _stream(model, architecture) as stream:
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        kept = mask.flatten().nonzero()[:, 0]
        resid = torch.stack([states.flatten(0, 1)[kept] for states in stream])
    return Reading(resid.float(), reader)


@contextmanager
def _stream(model: PreTrainedModel, architecture: Architecture) -> Iterator[list[Tensor]]:
    """What enters the first block, and what each leaves, once the model has run."""
    found: list[Tensor] = []

    def entering(_block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])

    def leaving(_block: Any, _args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    blocks = [model.get_submodule(block.path) for block in architecture.blocks]
    handles = [blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
    handles += [block.register_forward_hook(leaving) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
