"""A model in memory in another dtype, as transformers would have loaded it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tv.runtime.transformers_private import kept_in_float32


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model itself with its weights in another dtype.

    `model.to` rounds more than a loader does: what a model computes from its settings and stores in no file (with the
    frequencies of rotary embeddings in bfloat16, late positions are turned by other angles), and the weights that some
    classes keep in float32 (routers, their corrections). Both keep their dtype here. A class that cannot be built from
    its settings alone is cast as torch does it.
    """
    stays = list(_staying(model, dtype))
    model.to(dtype)
    for values, name, value, data in stays:
        values[name] = value
        value.data = data
    return model


def _staying(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[tuple[dict[str, Any], str, Tensor, Tensor]]:
    try:
        with torch.device("meta"):
            loaded = type(model)._from_config(copy.deepcopy(model.config), dtype=dtype)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return
    dtypes = {name: value.dtype for name, value in loaded.named_buffers()}
    is_kept = kept_in_float32(loaded)
    for path, module in model.named_modules():
        computed = module._non_persistent_buffers_set
        for values in (module._parameters, module._buffers):
            for name, value in values.items():
                whole = f"{path}.{name}".lstrip(".")
                if value is None:
                    continue
                if values is module._buffers and name in computed:
                    stays = dtypes.get(whole) == value.dtype
                else:
                    stays = value.dtype == torch.float32 and is_kept(whole)
                if stays:
                    yield values, name, value, value.data
