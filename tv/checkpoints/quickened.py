"""A live model with quicker products."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from transformers import Conv1D

from tv.runtime.products import is_quicker, linear

Model = TypeVar("Model", bound=nn.Module)


class Linear(nn.Linear):
    """torch's, by `tv.runtime.products.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Turned(Conv1D):
    """GPT-2's linear layer, whose matrix lies the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


Turned.__name__ = Conv1D.__name__  # by which libraries know that the matrix is turned
_QUICK = {nn.Linear: Linear, Conv1D: Turned}


def quickened(model: Model) -> Model:
    """The model itself, whose linear layers multiply by `linear` from now on, if that is quicker on this machine."""
    if is_quicker():
        for module in model.modules():
            module.__class__ = _QUICK.get(type(module), type(module))
    return model
