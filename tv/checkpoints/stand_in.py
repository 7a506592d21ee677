"""A live model of a configuration in the memory of one block, to try how fast it computes: its numbers mean nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tv.architecture.classes import built
from tv.errors import LackOfMemory
from tv.runtime.memory import free_memory
from tv.runtime.transformers_private import make_buffers

#: The spread of its weights.
_SPREAD = 0.02
#: So many numbers are drawn; larger tensors repeat them.
_DRAWN = 2**20
#: Of a table that is looked up in, so many rows have values.
_ROWS = 4096
#: It takes at most this share of the memory that is free.
_SHARE = 0.5


def stand_in(config: PretrainedConfig, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """A model whose parameters of one shape are one tensor: as many products as in the real one, without its weights.

    Args:
        config: Of any model that transformers has a class for.
        dtype: That it computes in.
        device: Where.

    Returns:
        The model, in evaluation mode.

    Raises:
        ArchitectureError: transformers has no language model of this type.
        LackOfMemory: Half of the free memory does not hold one block, the embedding and the unembedding.

    Examples:
        >>> from transformers import AutoConfig
        >>> model = stand_in(AutoConfig.from_pretrained("data/models/base"), torch.float32)
        >>> model.model.layers[0].mlp.up_proj.weight is model.model.layers[5].mlp.up_proj.weight
        True
    """
    with torch.device("meta"):
        model = built(config, dtype=dtype)
    make_buffers(model, torch.device(device))
    places = list(model.named_parameters(remove_duplicate=False))
    kinds = {(tuple(value.shape), value.dtype): value for _, value in places}
    size = sum(value.nbytes for value in kinds.values())
    if device == "cpu" and size > _SHARE * free_memory():
        raise LackOfMemory(f"a trial holds one block of it, {size / 1e9:.1f} GB, in at most half of the free memory")
    multiplied = {tuple(value.shape) for owner in model.modules() for value in _own(owner)}
    made = {
        kind: nn.Parameter(_filled(value, device, kind[0] in multiplied), requires_grad=False)
        for kind, value in kinds.items()
    }
    for name, value in places:
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, made[tuple(value.shape), value.dtype])
    return model.eval()


def _own(owner: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that it reads whole: a table that tokens are looked up in is none."""
    return [] if isinstance(owner, nn.Embedding) else list(owner.parameters(recurse=False))


def _filled(like: Tensor, device: str, whole: bool) -> Tensor:
    if like.ndim < 2:  # gains
        return torch.ones_like(like, device=device)
    value = torch.empty_like(like, device=device)  # what nobody writes takes no memory
    drawn = torch.randn(min(_DRAWN, like.numel()), device=device).mul_(_SPREAD).to(like.dtype)
    for part in (value if whole else value[:_ROWS]).view(-1).split(len(drawn)):
        part.copy_(drawn[: len(part)])
    return value
