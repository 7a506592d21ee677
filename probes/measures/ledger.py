"""The ledger: an activation change, split exactly into what this module's weights did and what it inherited.

For y = W x (+ b) with W' = W + T in the tuned model and its input moved by Δx:

    Δy = T x + Δb   (direct)   +   W Δx   (inherited)   +   T Δx   (interaction)

and the direct term splits again by the pretrained output subspace Π_k: Π_k T x (amplified) + (I − Π_k) T x (new). A
norm's gain is a module too, elementwise; an embedding has a direct term only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from tv.measures.decomposition import decompose, fixed_k, k_of, left_basis
from tv.runtime.common_rows import common_rows

#: The SSA threshold whose subspace splits the direct term.
EPSILON = 0.05
#: Entries of a matrix, and of its output, that are held in float32 at a time.
_PIECE = 2**21


@dataclass(frozen=True)
class Ledger:
    """The terms of Δy as norms, at n places. NaN where a term is not defined or was not checked.

    The nulls are those of a T (and Δb) of the same norm with no preferred direction: `direct_null` is the root of the
    mean ‖T x + Δb‖², and a share 1 − k/m of its energy lies outside k of m directions.
    """

    delta_norm: Float[Tensor, " n"]
    direct_norm: Float[Tensor, " n"]
    direct_null: Float[Tensor, " n"]
    inherited_norm: Float[Tensor, " n"]
    interaction_norm: Float[Tensor, " n"]
    closure: Float[Tensor, " n"]  # ‖direct + inherited + interaction − Δy‖/‖Δy‖, each term a product; 0 of nothing
    amplified_norm: Float[Tensor, " n"]
    new_norm: Float[Tensor, " n"]
    new_share: Float[Tensor, " n"]  # ‖new‖²/‖direct‖²; 0 of nothing
    new_share_null: Float[Tensor, " n"]
    new_share_10: Float[Tensor, " n"]  # the same outside the leading 10 % of directions
    new_share_10_null: Float[Tensor, " n"]


@dataclass(frozen=True)
class OutputBasis:
    """Leading left singular vectors U of a pretrained matrix W; the first `k` span Π_k at ε, the first `k10` are 10 %.

    They are held on W's smaller side: U itself for a wide W, and for a tall one the V with U = W V.
    """

    k: int
    k10: int
    wide: bool
    vectors: Float[Tensor, "side kmax"]


@dataclass(frozen=True)
class Split:
    """What is needed to read T x + Δb along a basis: U itself, or UᵀT and UᵀΔb where the input is narrower."""

    basis: OutputBasis
    rows: int
    along: Float[Tensor, "a b"]  # U (rows, kmax), or UᵀT (kmax, cols)
    shift: Float[Tensor, " kmax"] | None = None


def output_basis(weight: Float[Tensor, "rows cols"]) -> OutputBasis:
    """The pretrained output subspaces of one matrix."""
    svd = decompose(weight.float())
    k, k10 = k_of(svd, EPSILON), fixed_k(svd, weight.shape[0])
    kmax = max(k, k10)
    vectors = left_basis(svd, kmax) if svd.wide else (svd.near[:, :kmax] * svd.inverse[:kmax]).float()
    return OutputBasis(k, k10, svd.wide, vectors)


def split_by(
    basis: OutputBasis,
    weight: Float[Tensor, "rows cols"],
    weight_tuned: Float[Tensor, "rows cols"],
    bias_change: Float[Tensor, " rows"] | None,
) -> Split:
    """How one tuned model's T lies along `basis`."""
    rows, cols = weight.shape
    if basis.wide:
        return Split(basis, rows, basis.vectors)
    cross = torch.zeros(cols, cols, device=weight.device)
    shift = torch.zeros(cols, device=weight.device)
    for part in _parts(rows, cols):
        w = weight[part].float()
        cross += w.T @ (weight_tuned[part].float().to(w.device) - w)
        if bias_change is not None:
            shift += bias_change[part] @ w
    return Split(basis, rows, basis.vectors.T @ cross, shift @ basis.vectors)


def linear_ledger(
    x: Float[Tensor, "n cols"],
    x_tuned: Float[Tensor, "n cols"],
    y: Float[Tensor, "n rows"],
    y_tuned: Float[Tensor, "n rows"],
    weight: Float[Tensor, "rows cols"],
    weight_tuned: Float[Tensor, "rows cols"],
    *,
    delta_norm: float,
    bias_change: Float[Tensor, " rows"] | None = None,
    split: Split | None = None,
    checked: Int[Tensor, " c"] | None = None,
) -> Ledger:
    """The ledger of a linear module, float32, a piece of its rows at a time; `delta_norm` is ‖T‖_F.

    `checked` are the places where W Δx is computed directly; elsewhere it is what the other terms leave of Δy, which
    saves a product as large as the module's. Without it, all are.
    """
    x, n = x.float(), len(x)
    moved = x_tuned.float() - x
    weight, weight_tuned = common_rows(weight, weight_tuned)
    both = torch.cat([x, moved])
    moved_checked = moved if checked is None else moved[checked]
    sums = torch.zeros(4, n, device=x.device)
    gap = torch.zeros(len(moved_checked), device=x.device)
    wide = split is not None and split.basis.wide
    along = torch.zeros(n, split.along.shape[1], device=x.device) if split is not None and wide else None
    for part in _parts(len(weight), max(weight.shape[1], n)):
        w = weight[part].float()
        t = weight_tuned[part].float().to(w.device) - w
        direct, interaction = linear(both, t).split(n)
        if bias_change is not None:
            direct = direct + bias_change[part]
        change = y_tuned[:, part].float() - y[:, part].float()
        left = change - direct - interaction
        inherited = linear(moved_checked, w)
        gap += ((left if checked is None else left[checked]) - inherited).square().sum(1)
        terms = (change, direct, inherited if checked is None else left, interaction)
        sums += torch.stack([term.square().sum(1) for term in terms])
        if along is not None and split is not None:
            along += direct @ split.along[part]
    if split is not None and along is None:
        along = linear(x, split.along, split.shift)
    expected = delta_norm**2 / weight.shape[1] * x.square().sum(1)
    if bias_change is not None:
        expected = expected + bias_change.square().sum()
    closure = torch.full_like(sums[0], float("nan"))
    where = slice(None) if checked is None else checked
    closure[where] = _closure(gap, sums[0][where])
    return _ledger(sums, closure, expected, along, split)


def gain_ledger(
    x: Float[Tensor, "n ... d"],
    x_tuned: Float[Tensor, "n ... d"],
    y: Float[Tensor, "n ... d"],
    y_tuned: Float[Tensor, "n ... d"],
    gain: Float[Tensor, " d"],
    gain_tuned: Float[Tensor, " d"],
    bias_change: Float[Tensor, " d"],
) -> Ledger:
    """The ledger of a norm's gain; `x` is the normalised input, before the gain. Heads count together."""
    delta, moved, change = gain_tuned - gain, x_tuned - x, y_tuned.float() - y.float()
    direct, inherited, interaction = x * delta + bias_change, moved * gain, moved * delta
    gap = (direct + inherited + interaction - change).flatten(1).square().sum(1)
    sums = torch.stack([term.flatten(1).square().sum(1) for term in (change, direct, inherited, interaction)])
    heads = x[0, ..., 0].numel()
    expected = delta.square().mean() * x.flatten(1).square().sum(1) + heads * bias_change.square().sum()
    return _ledger(sums, _closure(gap, sums[0]), expected, None, None)


def lookup_ledger(y: Float[Tensor, "n d"], y_tuned: Float[Tensor, "n d"], delta_norm: float, n_rows: int) -> Ledger:
    """The ledger of an embedding: both models read the same tokens, so all of its change is direct."""
    change = (y_tuned.float() - y.float()).square().sum(1)
    nothing = torch.zeros_like(change)
    expected = torch.full_like(change, delta_norm**2 / n_rows)
    return _ledger(torch.stack([change, change, nothing, nothing]), nothing, expected, None, None)


def _ledger(
    sums: Float[Tensor, "4 n"],
    closure: Float[Tensor, " n"],
    expected: Float[Tensor, " n"],
    along: Float[Tensor, "n kmax"] | None,
    split: Split | None,
) -> Ledger:
    nothing = torch.full_like(closure, float("nan"))
    splits = dict.fromkeys(("amplified_norm", "new_norm"), nothing)
    for name in ("new_share", "new_share_10"):
        splits |= {name: nothing, f"{name}_null": nothing}
    if along is not None and split is not None:
        direct = sums[1]
        for name, k in (("new_share", split.basis.k), ("new_share_10", split.basis.k10)):
            amplified = along[:, :k].square().sum(1).minimum(direct)
            share = torch.where(direct > 0, 1 - amplified / direct, torch.zeros_like(direct))
            splits |= {name: share, f"{name}_null": torch.full_like(share, 1 - k / split.rows)}
            if name == "new_share":
                splits |= {"amplified_norm": amplified.sqrt(), "new_norm": (direct - amplified).sqrt()}
    delta_norm, direct_norm, inherited_norm, interaction_norm = sums.sqrt()
    return Ledger(
        delta_norm=delta_norm,
        direct_norm=direct_norm,
        direct_null=expected.sqrt(),
        inherited_norm=inherited_norm,
        interaction_norm=interaction_norm,
        closure=closure,
        **splits,
    )


def _closure(gap: Float[Tensor, " n"], change: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """‖gap‖/‖Δy‖ of squares; 0 where there is no gap."""
    return torch.where(gap == 0, gap, gap / change).sqrt()


def _parts(rows: int, width: int) -> list[slice]:
    step = max(64, _PIECE // width)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
