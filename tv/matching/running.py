"""A live model given the weights of its own checkpoint, written differently: proved to compute the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tv.checkpoints.checkpoint import Checkpoint
from tv.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Relative difference of the logits below which two models compute the same, by the dtype that they compute in.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.2, torch.float16: 2e-2}
_TOKENS = 16


def write_into(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """Put the weights of `checkpoint` into a live model, in place, and prove that its function stays.

    Args:
        model: A model of the same function.
        checkpoint: As `tv.matched` returns it.

    Returns:
        The model.

    Raises:
        CheckpointError: Its logits on random tokens are others than before.

    Examples:
        >>> from tv.checkpoints.live import load_model
        >>> model = load_model("data/models/medical")
        >>> write_into(model, tv.matched("data/models/base", "data/models/medical")) is model
        True
    """
    before = _logits(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.read(name))
    after = _logits(model)
    if not bool((after - before).norm() <= _TOLERANCE.get(model.dtype, 0.2) * before.norm()):
        raise CheckpointError(
            f"{checkpoint.source}: written as the base is, it computes something else; leave `align` out, and report "
            "the architecture"
        )
    return model


@torch.inference_mode()
def _logits(model: PreTrainedModel) -> Tensor:
    size = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(size, (2, _TOKENS), generator=torch.Generator().manual_seed(0)).to(model.device)
    return torch.as_tensor(model(input_ids=ids, use_cache=False).logits).float().cpu()
