"""Direct logit attribution (DLA): how much of logit[target] − logit[foil] a contribution to the stream supplies.

It reads a contribution c through the final norm with its scale frozen. Shares of all components and the embedding sum
to the logit difference, except for the constant that a bias in the final norm or in the unembedding adds
(`Readout.constant`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probes.measures.norms import NormForm
from tv.architecture.anatomy import Architecture
from tv.checkpoints.streamed import in_memory


@dataclass(frozen=True)
class Readout:
    """How a model reads target − foil off its residual stream, for every prompt of a batch."""

    direction: Float[Tensor, "prompt d_model"]  # u with u·x / scale + constant = logit[target] − logit[foil]
    constant: Float[Tensor, " prompt"]
    has_target: Float[Tensor, " prompt"]  # 1, or NaN where the prompt has no target and foil

    def push(self, contribution: Float[Tensor, "n d_model"], prompt: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """u·c, NaN where there is no target; `prompt` is the prompt of each place."""
        along = contribution @ self.direction.to(contribution.device).T
        return self._of(along[:, None], prompt)[:, 0]

    def head_push(
        self,
        z: Float[Tensor, "heads n d_head"],
        matrix: Float[Tensor, "d_model heads d_head"],
        prompt: Int[Tensor, " n"],
    ) -> Float[Tensor, "n heads"]:
        """u·(W_h z_h) as (W_hᵀu)·z_h: no contribution of a head is formed."""
        pulled = torch.einsum("pm,mha->hap", self.direction.to(z.device), matrix)
        return self._of((z @ pulled).transpose(0, 1), prompt)

    def _of(self, along: Float[Tensor, "n heads prompt"], prompt: Int[Tensor, " n"]) -> Float[Tensor, "n heads"]:
        pushes = along.gather(2, prompt[:, None, None].expand(-1, along.shape[1], 1))[:, :, 0]
        return pushes * self.has_target.to(pushes.device)[prompt, None]


def readout(
    model: PreTrainedModel,
    architecture: Architecture,
    form: NormForm,
    target: Int[Tensor, " prompt"],
    foil: Int[Tensor, " prompt"],
    scale: tuple[float, float] = (1.0, 1.0),
) -> Readout:
    """The direction that separates `target` from `foil`; ids below 0 mean that the prompt has none.

    `scale` multiplies what the unembedding reads, and the logits behind it.

    The logits are those before a soft cap, where a model has one.
    """
    norm, unembed = model.get_submodule(architecture.final_norm), model.get_submodule(architecture.unembed)
    matrix = in_memory(unembed).get_parameter("weight").detach()
    known = (target >= 0) & (foil >= 0)
    t, f = (ids.clamp(min=0).to(matrix.device) for ids in (target, foil))
    difference = matrix[t].float() - matrix[f].float()
    difference = difference.to(_device(norm, matrix)) * (scale[0] * scale[1])
    bias = form.bias(norm)
    constant = difference @ bias.expand(difference.shape[1])
    if getattr(unembed, "bias", None) is not None:
        constant = constant + scale[1] * (unembed.bias[t] - unembed.bias[f]).float().to(constant.device)
    has_target = torch.where(known, 1.0, float("nan"))
    return Readout(form.readout(norm, difference), constant, has_target)


def _device(norm: nn.Module, matrix: Tensor) -> torch.device:
    """Where a norm computes: where its gain lies, or without one where the unembedding does."""
    return next((parameter.device for parameter in in_memory(norm).parameters()), matrix.device)
