"""What each component adds to the residual stream of both models: norms, agreement, and its push on the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.measures.dla import Readout


@dataclass(frozen=True)
class Contributions:
    """One component at n places (and, per head, n × n_heads), in both models."""

    norm_base: Float[Tensor, "n ..."]
    norm_tuned: Float[Tensor, "n ..."]
    delta_norm: Float[Tensor, "n ..."]  # ‖c_tuned − c_base‖
    cosine: Float[Tensor, "n ..."]  # of the two models' contributions; 0 where one of them is zero
    push_base: Float[Tensor, "n ..."]  # DLA times the final norm's scale, which is known only at the end of the forward
    push_tuned: Float[Tensor, "n ..."]


def compare_contributions(
    base: Float[Tensor, "n d_model"],
    tuned: Float[Tensor, "n d_model"],
    read_base: Readout,
    read_tuned: Readout,
    prompt: Int[Tensor, " n"],
) -> Contributions:
    """A whole component's contribution in both models, at places of the prompts `prompt`."""
    base, tuned = base.float(), tuned.float()
    norm_base, norm_tuned = base.norm(dim=-1), tuned.norm(dim=-1)
    return Contributions(
        norm_base=norm_base,
        norm_tuned=norm_tuned,
        delta_norm=(tuned - base).norm(dim=-1),
        cosine=_ratio((base * tuned).sum(-1), norm_base * norm_tuned),
        push_base=read_base.push(base, prompt),
        push_tuned=read_tuned.push(tuned, prompt),
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
    prompt: Int[Tensor, " n"],
) -> Contributions:
    """Every head's contribution, from z (the projection's input): fields are (n, heads), no (n, heads, d_model) formed.

    With W, T the head's columns: c = W z, and the change d = W (z' − z) + T z'; the tuned model's is c + d.
    """
    heads = grams.ww.shape[0]
    z, z_tuned = (x.float().unflatten(1, (heads, -1)).transpose(0, 1) for x in (base, tuned))
    moved = z_tuned - z
    by_base, by_move, by_change = z @ grams.ww, moved @ grams.ww, z_tuned @ grams.wt.mT
    c_c = _dot(by_base, z)
    c_d = _dot(by_base, moved) + _dot(by_change, z)
    d_d = _dot(by_move, moved) + 2 * _dot(by_change, moved) + _dot(z_tuned @ grams.tt, z_tuned)
    norm_base, norm_tuned = c_c.clamp(min=0).sqrt(), (c_c + 2 * c_d + d_d).clamp(min=0).sqrt()
    return Contributions(
        norm_base=norm_base,
        norm_tuned=norm_tuned,
        delta_norm=d_d.clamp(min=0).sqrt(),
        cosine=_ratio(c_c + c_d, norm_base * norm_tuned),
        push_base=read_base.head_push(z, grams.base, prompt),
        push_tuned=read_tuned.head_push(z_tuned, grams.tuned, prompt),
    )


def _dot(left: Float[Tensor, "heads n a"], right: Float[Tensor, "heads n a"]) -> Float[Tensor, "n heads"]:
    return (left * right).sum(-1).T


def _ratio(dot: Tensor, norms: Tensor) -> Tensor:
    return torch.where(norms > 0, dot / norms.clamp(min=torch.finfo(norms.dtype).tiny), torch.zeros_like(norms))
