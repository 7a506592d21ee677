"""What each component adds to the residual stream of both models: norms, agreement, and its push on the logits.

Direct logit attribution (DLA) reads a contribution c through the final norm with its scale frozen: the share of
logit[target] − logit[foil] that c supplies. Shares of all components and the embedding sum to the logit difference,
but for the constant that a bias in the final norm or in the unembedding adds (`Readout.constant`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probes.norms import NormForm
from tv.architecture import Architecture


@dataclass(frozen=True)
class Contributions:
    """One component at n places (and, per head, n × n_heads), in both models."""

    norm_base: Float[Tensor, "n ..."]
    norm_tuned: Float[Tensor, "n ..."]
    delta_norm: Float[Tensor, "n ..."]  # ‖c_tuned − c_base‖
    cosine: Float[Tensor, "n ..."]  # of the two models' contributions; 0 where one of them is zero
    push_base: Float[Tensor, "n ..."]  # DLA times the final norm's scale, which is known only at the end of the forward
    push_tuned: Float[Tensor, "n ..."]


@dataclass(frozen=True)
class Readout:
    """How a model reads target − foil off its residual stream at n places."""

    direction: Float[Tensor, "n d_model"]  # u with u·x / scale = logit[target] − logit[foil], constant apart
    constant: Float[Tensor, " n"]
    has_target: Float[Tensor, " n"]  # 1, or NaN where the prompt has no target and foil

    def push(self, contribution: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
        """u·c, NaN where there is no target."""
        return (contribution * self.direction).sum(-1) * self.has_target


def readout(
    model: PreTrainedModel,
    architecture: Architecture,
    form: NormForm,
    target: Int[Tensor, " n"],
    foil: Int[Tensor, " n"],
) -> Readout:
    """The direction that separates `target` from `foil`; ids below 0 say that the prompt has none.

    The logits are those before a soft cap, where a model has one.
    """
    norm, unembed = model.get_submodule(architecture.final_norm), model.get_submodule(architecture.unembed)
    known = (target >= 0) & (foil >= 0)
    t, f = target.clamp(min=0), foil.clamp(min=0)
    matrix = unembed.weight.detach()
    difference = matrix[t].float() - matrix[f].float()
    constant = difference @ form.bias(norm)
    if getattr(unembed, "bias", None) is not None:
        constant = constant + (unembed.bias[t] - unembed.bias[f]).float()
    has_target = torch.where(known, 1.0, float("nan"))
    return Readout(form.readout(norm, difference), constant, has_target)


def compare_contributions(
    base: Float[Tensor, "n d_model"], tuned: Float[Tensor, "n d_model"], read_base: Readout, read_tuned: Readout
) -> Contributions:
    """A whole component's contribution in both models."""
    base, tuned = base.float(), tuned.float()
    norm_base, norm_tuned = base.norm(dim=-1), tuned.norm(dim=-1)
    return Contributions(
        norm_base=norm_base,
        norm_tuned=norm_tuned,
        delta_norm=(tuned - base).norm(dim=-1),
        cosine=_ratio((base * tuned).sum(-1), norm_base * norm_tuned),
        push_base=read_base.push(base),
        push_tuned=read_tuned.push(tuned),
    )


@dataclass(frozen=True)
class HeadGrams:
    """Per-head products of the output projections W (base) and W + T (tuned): norms without forming contributions."""

    base: Float[Tensor, "d_model heads d_head"]  # W, by head
    tuned: Float[Tensor, "d_model heads d_head"]
    ww: Float[Tensor, "heads d_head d_head"]  # W_hᵀ W_h
    wt: Float[Tensor, "heads d_head d_head"]  # W_hᵀ T_h
    tt: Float[Tensor, "heads d_head d_head"]  # T_hᵀ T_h


def head_grams(base: Float[Tensor, "d_model cols"], tuned: Float[Tensor, "d_model cols"], n_heads: int) -> HeadGrams:
    """Grams of two output projections, float32. A post-norm's gain must be folded into both by the caller."""
    w, w_tuned = (m.float().unflatten(1, (n_heads, -1)) for m in (base, tuned))
    t = w_tuned - w

    def gram(left: Tensor, right: Tensor) -> Tensor:
        return torch.einsum("mha,mhb->hab", left, right)

    return HeadGrams(w, w_tuned, gram(w, w), gram(w, t), gram(t, t))


def compare_heads(
    base: Float[Tensor, "n cols"],
    tuned: Float[Tensor, "n cols"],
    grams: HeadGrams,
    read_base: Readout,
    read_tuned: Readout,
) -> Contributions:
    """Every head's contribution, from z (the projection's input): fields are (n, heads), no (n, heads, d_model) formed.

    With W, T the head's columns: c_base = W z, c_tuned = (W + T) z', and c_tuned − c_base = W (z' − z) + T z'.
    """
    heads = grams.ww.shape[0]
    z, z_tuned = (x.float().unflatten(1, (heads, -1)) for x in (base, tuned))
    moved = z_tuned - z

    def form(left: Tensor, gram: Tensor, right: Tensor) -> Tensor:
        return torch.einsum("nha,hab,nhb->nh", left, gram, right)

    whole = grams.ww + grams.wt + grams.wt.mT + grams.tt
    norm_base = form(z, grams.ww, z).clamp(min=0).sqrt()
    norm_tuned = form(z_tuned, whole, z_tuned).clamp(min=0).sqrt()
    delta = form(moved, grams.ww, moved) + 2 * form(moved, grams.wt, z_tuned) + form(z_tuned, grams.tt, z_tuned)
    return Contributions(
        norm_base=norm_base,
        norm_tuned=norm_tuned,
        delta_norm=delta.clamp(min=0).sqrt(),
        cosine=_ratio(form(z, grams.ww + grams.wt, z_tuned), norm_base * norm_tuned),
        push_base=_head_push(z, grams.base, read_base),
        push_tuned=_head_push(z_tuned, grams.tuned, read_tuned),
    )


def _head_push(z: Float[Tensor, "n heads d_head"], matrix: Tensor, read: Readout) -> Float[Tensor, "n heads"]:
    along = torch.einsum("nm,mha->nha", read.direction, matrix)
    return (z * along).sum(-1) * read.has_target[:, None]


def _ratio(dot: Tensor, norms: Tensor) -> Tensor:
    return torch.where(norms > 0, dot / norms.clamp(min=torch.finfo(norms.dtype).tiny), torch.zeros_like(norms))
