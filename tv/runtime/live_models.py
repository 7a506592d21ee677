"""Whether something is a model of transformers in memory, without importing transformers to ask."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_live(source: object) -> TypeGuard[PreTrainedModel]:
    """Whether it is a model in memory: then its class has been imported.

    Examples:
        >>> from tv.checkpoints.live import load_model
        >>> is_live(load_model("data/models/base")), is_live("data/models/base")
        (True, False)
    """
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(source, modeling.PreTrainedModel)
