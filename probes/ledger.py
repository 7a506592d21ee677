"""The ledger: an activation change, split exactly into what this module's own weights did and what it inherited.

For y = W x (+ b) with W' = W + T in the tuned model and its input moved by Δx:

    Δy = T x + Δb   (direct)   +   W Δx   (inherited)   +   T Δx   (interaction)

and the direct term splits again by the pretrained output subspace Π_k: Π_k T x (amplified) + (I − Π_k) T x (new). A
norm's gain is a module too, elementwise; an embedding has a direct term only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True)
class Terms:
    """The three terms of Δy, as vectors."""

    direct: Float[Tensor, "n rows"]
    inherited: Float[Tensor, "n rows"]
    interaction: Float[Tensor, "n rows"]

    def closure(self, change: Float[Tensor, "n rows"]) -> Float[Tensor, " n"]:
        """Relative error of direct + inherited + interaction against the change that was seen; 0 where both vanish."""
        gap = (self.direct + self.inherited + self.interaction - change).norm(dim=-1)
        size = change.norm(dim=-1)
        return torch.where(gap == 0, gap, gap / size)


def linear_terms(
    x: Float[Tensor, "n cols"],
    x_tuned: Float[Tensor, "n cols"],
    weight: Float[Tensor, "rows cols"],
    weight_tuned: Float[Tensor, "rows cols"],
    bias_change: Float[Tensor, " rows"] | None = None,
) -> Terms:
    """The terms of a linear module, float32."""
    weight = weight.float()
    delta, moved = weight_tuned.float() - weight, (x_tuned - x).float()
    return Terms(linear(x.float(), delta, bias_change), linear(moved, weight), linear(moved, delta))


def gain_terms(
    x: Float[Tensor, "n rows"],
    x_tuned: Float[Tensor, "n rows"],
    gain: Float[Tensor, " rows"],
    gain_tuned: Float[Tensor, " rows"],
    bias_change: Float[Tensor, " rows"],
) -> Terms:
    """The terms of a norm's gain; `x` is the normalised input, before the gain."""
    delta, moved = gain_tuned - gain, x_tuned - x
    return Terms(x * delta + bias_change, moved * gain, moved * delta)


def lookup_terms(change: Float[Tensor, "n rows"]) -> Terms:
    """The terms of an embedding: both models read the same tokens, so all of its change is its own."""
    zero = torch.zeros_like(change)
    return Terms(change, zero, zero)


def split_direct(
    direct: Float[Tensor, "n rows"], basis: Float[Tensor, "rows k"]
) -> tuple[Float[Tensor, "n rows"], Float[Tensor, "n rows"]]:
    """(amplified, new): the parts of `direct` inside and outside the span of an orthonormal `basis`."""
    amplified = (direct @ basis) @ basis.T
    return amplified, direct - amplified


def new_share(new: Float[Tensor, "n rows"], direct: Float[Tensor, "n rows"]) -> Float[Tensor, " n"]:
    """‖new‖²/‖direct‖²: the share of a module's own write that lies outside the pretrained subspace; 0 of nothing.

    Its null, for a T with no preferred direction, is 1 − k/m.
    """
    total = direct.pow(2).sum(-1)
    return torch.where(total > 0, new.pow(2).sum(-1) / total.clamp(min=torch.finfo(total.dtype).tiny), total)
