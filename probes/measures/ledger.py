"""The ledger: an activation change, split exactly into what this module's weights did and what it inherited.

For y = W x (+ b) with W' = W + T in the tuned model and its input moved by Δx:

    Δy = T x + Δb   (direct)   +   W Δx   (inherited)   +   T Δx   (interaction)

Each has a share ⟨term, Δy⟩/‖Δy‖² of the change, and the three sum to 1. The direct term splits again by the pretrained
output subspace Π_k: Π_k T x (amplified) + (I − Π_k) T x (new). A norm's gain is a module too, elementwise; an embedding
has a direct term only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from tv.measures.decomposition import Decomposition, decompose, fixed_k, k_of, left_basis
from tv.runtime.common_rows import common_rows

#: The SSA threshold whose subspace splits the direct term.
EPSILON = 0.05
#: Below this size, beside the largest of its terms, Δy is what is left of terms that cancel: it has no shares.
CANCELLED = 0.1
#: Nor has it below this size beside y, or below the precision of y's dtype: float32 sums in another order part as far.
ROUNDING = 1e-5
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
    direct_share: Float[Tensor, " n"]  # ⟨direct, Δy⟩/‖Δy‖²; NaN where Δy is cancelled or rounding
    inherited_share: Float[Tensor, " n"]
    interaction_share: Float[Tensor, " n"]
    closure: Float[Tensor, " n"]  # ‖direct + inherited + interaction − Δy‖/‖Δy‖, each term a product; 0 of nothing
    amplified_norm: Float[Tensor, " n"]
    new_norm: Float[Tensor, " n"]
    new_share: Float[Tensor, " n"]  # ‖new‖²/‖direct‖²; NaN of nothing
    new_share_null: Float[Tensor, " n"]
    new_share_of_w: Float[Tensor, " n"]  # the share of ‖W x‖² there: of a T that is a multiple of W
    new_share_10: Float[Tensor, " n"]  # the same outside the leading 10 % of directions
    new_share_10_null: Float[Tensor, " n"]
    new_share_10_of_w: Float[Tensor, " n"]


@dataclass(frozen=True)
class OutputBasis:
    """Leading left singular vectors U of a pretrained matrix W; the first `k` span Π_k at ε, the first `k10` are 10 %.

    They are held on W's smaller side: U itself for a wide W, and for a tall one the V with U = W V.
    """

    k: int
    k10: int
    wide: bool
    vectors: Float[Tensor, "side kmax"]
    sigma: Float[Tensor, " kmax"]  # the singular values of these directions


@dataclass(frozen=True)
class Split:
    """What is needed to read T x + Δb along a basis: U itself, or UᵀT and UᵀΔb where the input is narrower."""

    basis: OutputBasis
    rows: int
    along: Float[Tensor, "a b"]  # U (rows, kmax), or UᵀT (kmax, cols)
    shift: Float[Tensor, " kmax"] | None = None


def output_basis(weight: Float[Tensor, "rows cols"]) -> OutputBasis:
    """The pretrained output subspaces of one matrix."""
    return basis_of(decompose(weight.float()))


def basis_of(svd: Decomposition) -> OutputBasis:
    """The same of a matrix that is decomposed already."""
    k, k10 = k_of(svd, EPSILON), fixed_k(svd, svd.weight.shape[0])
    kmax = max(k, k10)
    vectors = left_basis(svd, kmax) if svd.wide else (svd.near[:, :kmax] * svd.inverse[:kmax]).float()
    return OutputBasis(k, k10, svd.wide, vectors, svd.sigma[:kmax].float())


def most_bytes(rows: int, cols: int) -> int:
    """Bytes that the basis of a matrix and one tuned model's T along it take, where it needs every direction."""
    side = min(rows, cols)
    return 4 * side * side * (1 if rows <= cols else 2)


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
    bias: Float[Tensor, " rows"] | None = None,
    bias_change: Float[Tensor, " rows"] | None = None,
    split: Split | None = None,
    checked: Int[Tensor, " c"] | None = None,
) -> Ledger:
    """The ledger of a linear module, float32, a piece of its rows at a time; `delta_norm` is ‖T‖_F, `bias` the base's.

    `checked` are the places where W Δx is computed directly; elsewhere it is what the other terms leave of Δy, which
    saves a product as large as the module's. Without it, all are.
    """
    x, n = x.float(), len(x)
    moved = x_tuned.float() - x
    weight, weight_tuned = common_rows(weight, weight_tuned)
    both = torch.cat([x, moved])
    moved_checked = moved if checked is None else moved[checked]
    sums = _Sums.of_none(n, x.device)
    gap = torch.zeros(len(moved_checked), device=x.device)
    wide = split is not None and split.basis.wide
    along = torch.zeros(2 * n, split.along.shape[1], device=x.device) if split is not None and wide else None
    written = torch.zeros(n, device=x.device)
    for part in _parts(len(weight), max(weight.shape[1], n)):
        w = weight[part].float()
        t = weight_tuned[part].float().to(w.device) - w
        direct, interaction = linear(both, t).split(n)
        if bias_change is not None:
            direct = direct + bias_change[part]
        before = y[:, part].float()
        change = y_tuned[:, part].float() - before
        own = before if bias is None else before - bias[part].to(before)
        left = change - direct - interaction
        inherited = linear(moved_checked, w)
        gap += ((left if checked is None else left[checked]) - inherited).square().sum(1)
        sums.add(before, change, (direct, inherited if checked is None else left, interaction))
        written += own.square().sum(1)
        if along is not None and split is not None:
            along += torch.cat([direct, own]) @ split.along[part]
    if split is not None and along is None:
        along = torch.cat([linear(x, split.along, split.shift), (x @ split.basis.vectors) * split.basis.sigma.square()])
    expected = delta_norm**2 / weight.shape[1] * x.square().sum(1)
    if bias_change is not None:
        expected = expected + bias_change.square().sum()
    closure = torch.full_like(expected, float("nan"))
    where = slice(None) if checked is None else checked
    closure[where] = _closure(gap, sums.change[where])
    new = None if along is None or split is None else _new(along, sums.terms[0], written, split)
    return _ledger(sums, y.dtype, closure, expected, new)


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
    sums = _Sums.of_none(len(x), x.device)
    sums.add(y.float().flatten(1), change.flatten(1), [v.flatten(1) for v in (direct, inherited, interaction)])
    heads = x[0, ..., 0].numel()
    expected = delta.square().mean() * x.flatten(1).square().sum(1) + heads * bias_change.square().sum()
    return _ledger(sums, y.dtype, _closure(gap, sums.change), expected)


def lookup_ledger(y: Float[Tensor, "n d"], y_tuned: Float[Tensor, "n d"], delta_norm: float, n_rows: int) -> Ledger:
    """The ledger of an embedding: both models read the same tokens, so all of its change is direct."""
    change = y_tuned.float() - y.float()
    sums, nothing = _Sums.of_none(len(y), y.device), torch.zeros_like(change)
    sums.add(y.float(), change, (change, nothing, nothing))
    expected = torch.full_like(sums.change, delta_norm**2 / n_rows)
    return _ledger(sums, y.dtype, torch.zeros_like(expected), expected)


@dataclass
class _Sums:
    """Sums over the entries of an output, at n places."""

    output: Float[Tensor, " n"]  # ‖y‖²
    change: Float[Tensor, " n"]  # ‖Δy‖²
    terms: Float[Tensor, "3 n"]  # ‖term‖² of direct, inherited, interaction
    along: Float[Tensor, "3 n"]  # ⟨term, Δy⟩

    @classmethod
    def of_none(cls, n: int, device: torch.device) -> _Sums:
        return cls(*(torch.zeros(*shape, device=device) for shape in ((n,), (n,), (3, n), (3, n))))

    def add(self, y: Float[Tensor, "n p"], change: Float[Tensor, "n p"], terms: Sequence[Float[Tensor, "n p"]]) -> None:
        """Some more entries."""
        self.output += y.square().sum(1)
        self.change += change.square().sum(1)
        self.terms += torch.stack([term.square().sum(1) for term in terms])
        self.along += torch.stack([(term * change).sum(1) for term in terms])

    def shares(self, dtype: torch.dtype) -> Float[Tensor, "3 n"]:
        """Of each term in Δy; NaN where Δy is what cancelled terms leave, or rounding of y in this dtype."""
        floor = max(ROUNDING, torch.finfo(dtype).eps)
        known = (self.change > CANCELLED**2 * self.terms.amax(0)) & (self.change > floor**2 * self.output)
        return torch.where(known, self.along / self.change, float("nan"))


def _new(
    along: Float[Tensor, "2*n kmax"],
    direct: Float[Tensor, " n"],
    written: Float[Tensor, " n"],
    split: Split,
) -> dict[str, Float[Tensor, " n"]]:
    """The direct term outside the pretrained subspaces, with its nulls, out of T x and W x along the basis."""
    of_t, of_w = along.square().unflatten(0, (2, len(direct)))
    found: dict[str, Tensor] = {}
    for name, k in (("new_share", split.basis.k), ("new_share_10", split.basis.k10)):
        amplified = of_t[:, :k].sum(1).minimum(direct)
        found[name] = 1 - amplified / direct  # 0/0 is NaN
        found[f"{name}_of_w"] = 1 - of_w[:, :k].sum(1).minimum(written) / written
        found[f"{name}_null"] = torch.full_like(direct, 1 - k / split.rows)
        if name == "new_share":
            found |= {"amplified_norm": amplified.sqrt(), "new_norm": (direct - amplified).sqrt()}
    return found


_NEW = (
    "amplified_norm",
    "new_norm",
    *(f"new_share{of}{what}" for of in ("", "_10") for what in ("", "_null", "_of_w")),
)


def _ledger(
    sums: _Sums,
    dtype: torch.dtype,
    closure: Float[Tensor, " n"],
    expected: Float[Tensor, " n"],
    new: Mapping[str, Float[Tensor, " n"]] | None = None,
) -> Ledger:
    direct_norm, inherited_norm, interaction_norm = sums.terms.sqrt()
    direct_share, inherited_share, interaction_share = sums.shares(dtype)
    return Ledger(
        delta_norm=sums.change.sqrt(),
        direct_norm=direct_norm,
        direct_null=expected.sqrt(),
        inherited_norm=inherited_norm,
        interaction_norm=interaction_norm,
        direct_share=direct_share,
        inherited_share=inherited_share,
        interaction_share=interaction_share,
        closure=closure,
        **(new or dict.fromkeys(_NEW, torch.full_like(closure, float("nan")))),
    )


def _closure(gap: Float[Tensor, " n"], change: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """‖gap‖/‖Δy‖ of squares; 0 where there is no gap."""
    return torch.where(gap == 0, gap, gap / change).sqrt()


def _parts(rows: int, width: int) -> list[slice]:
    step = max(64, _PIECE // width)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
