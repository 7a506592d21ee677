"""A vector in the place of a state: what a model then says next, at any depth of a prompt's last token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from probes.discovery.sides import Model
from tv.runtime.transformers_private import grows

#: Rows of a forward pass.
_TOGETHER = 512


def said_with(
    model: Model, ids: Sequence[int], vectors: Float[Tensor, "n d_model"], depths: Sequence[int]
) -> Float[Tensor, "n vocab"]:
    """Logits behind a prompt whose last token's state, where it enters the block of this depth, is a vector.

    Args:
        model: A side's model, and how it is read.
        ids: The prompt.
        vectors: One a row.
        depths: By row, below the number of blocks.

    Returns:
        The logits of the next token.
    """
    found = []
    for rows in torch.arange(len(vectors)).split(_TOGETHER):
        text = torch.tensor([list(ids)] * len(rows), device=model.live.device)
        with torch.inference_mode():
            seen = _read(model, text[:1, :-1], len(rows))
            kept = {} if seen is None else {"past_key_values": seen}
            new = text if seen is None else text[:, -1:]
            with _replaced(model, vectors[rows], torch.tensor(depths)[rows]) as states:
                model.live.base_model(input_ids=new, attention_mask=torch.ones_like(text), use_cache=bool(kept), **kept)
            found.append(model.reader.logits(states[-1][:, -1]).cpu())
    return torch.cat(found)


def _read(model: Model, text: Tensor, rows: int) -> Any:
    """What all rows have in common, read once; None where a model's cache cannot be spread over rows."""
    if text.shape[1] < 1:
        return None
    seen = getattr(model.live.base_model(input_ids=text, use_cache=True), "past_key_values", None)
    if not isinstance(seen, DynamicCache) or not all(map(grows, seen.layers)):
        return None
    seen.batch_repeat_interleave(rows)
    return seen


@contextmanager
def _replaced(model: Model, vectors: Float[Tensor, "n d_model"], depths: Tensor) -> Iterator[list[Tensor]]:
    """Rows of the batch are changed where they enter their block; what the last block leaves is kept."""
    states: list[Tensor] = []

    def entering(depth: int) -> Any:
        def change(
            _block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            state = (args[0] if args else kwargs["hidden_states"]).clone()
            own = depths == depth
            state[own.to(state.device), -1] = vectors[own].to(state)
            return ((state, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": state})

        return change

    def leaving(_block: Any, _args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    blocks = [model.live.get_submodule(block.path) for block in model.architecture.blocks]
    handles = [
        block.register_forward_pre_hook(entering(depth), with_kwargs=True)
        for depth, block in enumerate(blocks)
        if bool((depths == depth).any())
    ]
    handles.append(blocks[-1].register_forward_hook(leaving))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
