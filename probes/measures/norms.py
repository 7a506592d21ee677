"""Norm layers as gain ∘ normalised input: a norm has the form that reproduces what the module really computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tv.checkpoints.streamed import in_memory


@dataclass(frozen=True)
class NormForm:
    """y = gain ∘ x̂ + bias, with x̂ = (x − mean)/scale; the mean is 0 and the offset 0 or 1 (Gemma) in an RMS norm."""

    centred: bool
    offset: float  # the gain is weight + offset
    eps: float
    position_dim: int  # which dimension of the input counts positions (2 where heads come first)

    def scale(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... 1"]:
        """The divisor, frozen when contributions are read through the norm."""
        return (self.less_mean(x).square().mean(-1, keepdim=True) + self.eps).sqrt()

    def less_mean(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """x without its mean; in an RMS norm x itself."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def normalised(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """x̂, before the gain."""
        return self.less_mean(x) / self.scale(x)

    def gain(self, norm: nn.Module) -> Float[Tensor, " d"]:
        """The gain of `norm`, float32."""
        weight = getattr(in_memory(norm), "weight", None)
        return weight.detach().float() + self.offset if isinstance(weight, Tensor) else torch.ones(())

    def bias(self, norm: nn.Module) -> Float[Tensor, " d"]:
        """The bias of `norm`, float32, zero where it has none."""
        if getattr(norm, "bias", None) is None:
            return torch.zeros_like(self.gain(norm))
        return in_memory(norm).get_parameter("bias").detach().float()

    def readout(self, norm: nn.Module, direction: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The vector u with u·x / scale(x) = direction·(gain ∘ x̂): a direction pulled back through the norm."""
        pulled = direction * self.gain(norm)
        return pulled - pulled.mean(-1, keepdim=True) if self.centred else pulled


def find_form(
    norm: nn.Module,
    x: Float[Tensor, "batch pos d"],
    y: Float[Tensor, "batch pos d"],
    n_positions: int,
    tolerance: float,
) -> NormForm | None:
    """The form that turns x into y as `norm` did, or None. `n_positions` must differ from the model's head counts."""
    x, y = x.float(), y.float()
    width = getattr(getattr(norm, "weight", None), "shape", x.shape[-1:])[-1]
    if x.shape != y.shape or width != x.shape[-1]:
        return None
    names = ("variance_epsilon", "eps", "norm_eps", "epsilon")
    eps = next((float(value) for n in names if isinstance(value := getattr(norm, n, None), float)), 0.0)
    position_dim = 1 if x.shape[1] == n_positions else 2
    for centred in (False, True):
        for offset in (0.0, 1.0):
            form = NormForm(centred, offset, eps, position_dim)
            rebuilt = form.normalised(x) * form.gain(norm) + form.bias(norm)
            if (rebuilt - y).norm() <= tolerance * y.norm():
                return form
    return None
