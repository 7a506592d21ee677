"""A copy of a model's modules around the same tensors, for libraries that rename, replace or rewire what they wrap."""

from __future__ import annotations

import copy

from transformers import PreTrainedModel


def shell(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model's modules and configuration that shares every parameter and buffer with it.

    Whatever is done to its modules leaves the model as it was; no memory is taken for weights.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
