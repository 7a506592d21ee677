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
from torch.linalg import vecdot

from probes.measures.tall import Tall, parts
from tv.measures.decomposition import Decomposition, decompose, fixed_k, k_of
from tv.runtime.common_rows import common_rows
from tv.runtime.products import linear

#: The SSA threshold whose subspace splits the direct term.
EPSILON = 0.05
#: Below this size, beside the largest of its terms, Δy is what is left of terms that cancel: it has no shares.
CANCELLED = 0.1
#: Nor has it below this size beside y, or below the precision of y's dtype: float32 sums in another order part as far.
ROUNDING = 1e-5


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
class Cut:
    """How an orthonormal basis is read to tell what lies outside its first `k` directions, and outside its first `k10`.

    Those from `k` on are read in place of the first `k` where they are fewer: both make up the whole.
    """

    k: int
    k10: int
    complete: int | None = None  # how many directions make up the whole; None where the basis spans a part of it

    @property
    def leading(self) -> int:
        """How many of the first directions are read."""
        return self.k10 if self.beyond else max(self.k, self.k10)

    @property
    def beyond(self) -> bool:
        """Whether all from `k` on are read."""
        return self.complete is not None and self.k10 + self.complete - self.k < max(self.k, self.k10)

    def of(self, vectors: Float[Tensor, "side r"]) -> Float[Tensor, "side read"]:
        """The directions that are read."""
        first = vectors[:, : self.leading]
        return torch.cat([first, vectors[:, self.k :]], 1) if self.beyond else first

    def outside(self, along: Float[Tensor, "n read"], whole: Float[Tensor, " n"]) -> Float[Tensor, "2 n"]:
        """The part of `whole`, squared norms, outside the first `k` and outside the first `k10` directions."""
        squares = along.square()
        first, first10 = (whole - squares[:, :k].sum(1).minimum(whole) for k in (self.k, self.k10))
        return torch.stack([squares[:, self.k10 :].sum(1).minimum(whole) if self.beyond else first, first10])


@dataclass(frozen=True)
class OutputBasis:
    """The leading left singular vectors U of a pretrained W: the first `k` span Π_k at ε, the first `k10` are 10 %.

    `vectors` are on W's smaller side: columns of U for a wide W, and for a tall one the V with U = W V.
    """

    wide: bool
    cut: Cut  # of U, for T x
    vectors: Float[Tensor, "side r"]  # the first k and the first k10 at least
    cut_of_w: Cut  # for W x, which lies in the span of U
    reads_w: Float[Tensor, "side read"] | None  # of a tall W: UᵀW x is x times these

    @property
    def k(self) -> int:
        """The directions that span Π_k."""
        return self.cut.k


@dataclass(frozen=True)
class Split:
    """What is needed to read T x + Δb along a basis: U itself, or UᵀT and UᵀΔb where the input is narrower."""

    basis: OutputBasis
    rows: int
    along: Float[Tensor, "a b"]  # U (rows, read), or UᵀT (read, cols)
    shift: Float[Tensor, " read"] | None = None


def output_basis(weight: Float[Tensor, "rows cols"]) -> OutputBasis:
    """The pretrained output subspaces of one matrix."""
    return basis_of(decompose(weight.float()))


def basis_of(svd: Decomposition) -> OutputBasis:
    """The same of a matrix that is decomposed already."""
    rows, cols = svd.weight.shape
    k, k10 = k_of(svd, EPSILON), fixed_k(svd, rows)
    if svd.wide:
        cut = Cut(k, k10, rows)
        return OutputBasis(True, cut, svd.near.float(), cut, None)
    cut, cut_of_w = Cut(k, k10), Cut(k, k10, cols)
    vectors = cut.of(svd.near * svd.inverse).float()
    return OutputBasis(False, cut, vectors, cut_of_w, cut_of_w.of(svd.near * svd.sigma).float())


def most_bytes(rows: int, cols: int) -> int:
    """Bytes that the basis of a matrix and one tuned model's T along it take, where it needs every direction."""
    side = min(rows, cols)
    return 4 * side * side * (2 if rows <= cols else 3)


def split_by(
    basis: OutputBasis,
    weight: Float[Tensor, "rows cols"],
    weight_tuned: Float[Tensor, "rows cols"],
    bias_change: Float[Tensor, " rows"] | None,
) -> Split:
    """How one tuned model's T lies along `basis`."""
    rows, cols = weight.shape
    if basis.wide:
        return Split(basis, rows, basis.cut.of(basis.vectors))
    cross = torch.zeros(cols, cols, device=weight.device)
    shift = torch.zeros(cols, device=weight.device)
    for part in parts(rows, cols):
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
    tall: Tall | None = None,
) -> Ledger:
    """The ledger of a linear module, float32, a piece of its rows at a time; `delta_norm` is ‖T‖_F, `bias` the base's.

    `checked` are the places where W Δx is computed directly; elsewhere it is what the other terms leave of Δy, which
    saves a product as large as the module's. Without it, all are. With `tall`, products as large as the module's are
    for the checked places alone, and the others' terms are read in fewer coordinates; float32 outputs only, since a
    coarser one's rounding, a part of Δy, is in no term.
    """
    x = x.float()
    moved = x_tuned.float() - x
    weight, weight_tuned = common_rows(weight, weight_tuned)
    step = _Step(weight, weight_tuned, bias, bias_change)
    where = slice(None) if checked is None else checked
    if tall is None or checked is None:
        wide = split if split is not None and split.basis.wide else None
        sums, gap, along = _by_rows(step, x, moved, y, y_tuned, checked, wide)
    else:
        _, gap, along = _by_rows(step, x[checked], moved[checked], y[checked], y_tuned[checked], None, None)
        sums = _by_coordinates(tall, x, moved, y, y_tuned, bias)
    if split is not None and not split.basis.wide:
        assert split.basis.reads_w is not None
        along = linear(x, split.along, split.shift), linear(x, split.basis.reads_w.T)
    expected = delta_norm**2 / weight.shape[1] * x.square().sum(1)
    if bias_change is not None:
        expected = expected + bias_change.square().sum()
    closure = torch.full_like(expected, float("nan"))
    closure[where] = _closure(gap, sums.change[where])
    new = None if along is None or split is None else _new(*along, sums, split)
    return _ledger(sums, y.dtype, closure, expected, new)


@dataclass(frozen=True)
class _Step:
    """The weights of a linear module and how they moved, a piece of the rows at a time."""

    weight: Float[Tensor, "rows cols"]
    weight_tuned: Float[Tensor, "rows cols"]
    bias: Float[Tensor, " rows"] | None
    bias_change: Float[Tensor, " rows"] | None

    def of(self, part: slice) -> tuple[Float[Tensor, "p cols"], Float[Tensor, "p cols"]]:
        """W and T, float32."""
        w = self.weight[part].float()
        return w, self.weight_tuned[part].float().to(w.device) - w


Along = tuple[Float[Tensor, "n read"], Float[Tensor, "n read"]]


def _by_rows(
    step: _Step,
    x: Float[Tensor, "n cols"],
    moved: Float[Tensor, "n cols"],
    y: Float[Tensor, "n rows"],
    y_tuned: Float[Tensor, "n rows"],
    checked: Int[Tensor, " c"] | None,
    wide: Split | None,
) -> tuple[_Sums, Float[Tensor, " c"], Along | None]:
    """Every term as a product, its sums, what they leave of Δy, and T x + Δb and W x along a wide basis."""
    both, n = torch.cat([x, moved]), len(x)
    moved_checked = moved if checked is None else moved[checked]
    sums = _Sums.of_none(n, x.device)
    gap = torch.zeros(len(moved_checked), device=x.device)
    along = None if wide is None else torch.zeros(2 * n, wide.along.shape[1], device=x.device)
    for part in parts(len(step.weight), max(step.weight.shape[1], n)):
        w, t = step.of(part)
        direct, interaction = linear(both, t).split(n)
        if step.bias_change is not None:
            direct += step.bias_change[part]
        before = y[:, part].float()
        change = y_tuned[:, part].float() - before
        left = (change - direct).sub_(interaction)
        inherited = linear(moved_checked, w)
        gap += ((left if checked is None else left[checked]) - inherited).square().sum(1)
        own = before if step.bias is None else before - step.bias[part].to(before)
        sums.add(before, own, change, (direct, inherited if checked is None else left, interaction))
        if along is not None and wide is not None:
            along += torch.cat([direct, own]) @ wide.along[part]
    return sums, gap, None if along is None else (along[:n], along[n:])


def _by_coordinates(
    tall: Tall,
    x: Float[Tensor, "n cols"],
    moved: Float[Tensor, "n cols"],
    y: Float[Tensor, "n rows"],
    y_tuned: Float[Tensor, "n rows"],
    bias: Float[Tensor, " rows"] | None,
) -> _Sums:
    """The sums of the terms in the coordinates of `tall`, and those of the output and its change as they are."""
    terms = tall.terms(x, moved)
    explained = torch.stack(terms).sum(0)
    sums = _Sums.of_none(len(x), x.device)
    for part in parts(tall.rows, len(x)):
        before = y[:, part].float()
        own = before if bias is None else before - bias[part].to(before)
        sums.add_output(before, own, y_tuned[:, part].float() - before)
    sums.add_terms(explained, terms)
    # A share is of the change that the terms make up, which the outputs have to their rounding.
    of_terms = vecdot(explained, explained)
    sums.along *= torch.where(of_terms > 0, sums.change / of_terms, 1.0)
    return sums


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
    written, change = y.float().flatten(1), change.flatten(1)
    sums.add(written, written, change, [v.flatten(1) for v in (direct, inherited, interaction)])
    heads = x[0, ..., 0].numel()
    expected = delta.square().mean() * x.flatten(1).square().sum(1) + heads * bias_change.square().sum()
    return _ledger(sums, y.dtype, _closure(gap, sums.change), expected)


def lookup_ledger(y: Float[Tensor, "n d"], y_tuned: Float[Tensor, "n d"], delta_norm: float, n_rows: int) -> Ledger:
    """The ledger of an embedding: both models read the same tokens, so all of its change is direct."""
    change = y_tuned.float() - y.float()
    sums, nothing = _Sums.of_none(len(y), y.device), torch.zeros_like(change)
    sums.add(y.float(), y.float(), change, (change, nothing, nothing))
    expected = torch.full_like(sums.change, delta_norm**2 / n_rows)
    return _ledger(sums, y.dtype, torch.zeros_like(expected), expected)


@dataclass
class _Sums:
    """Sums over the entries of an output, at n places."""

    output: Float[Tensor, " n"]  # ‖y‖²
    own: Float[Tensor, " n"]  # ‖y‖² without the bias
    change: Float[Tensor, " n"]  # ‖Δy‖²
    terms: Float[Tensor, "3 n"]  # ‖term‖² of direct, inherited, interaction
    along: Float[Tensor, "3 n"]  # ⟨term, Δy⟩

    @classmethod
    def of_none(cls, n: int, device: torch.device) -> _Sums:
        return cls(*(torch.zeros(*shape, device=device) for shape in ((n,), (n,), (n,), (3, n), (3, n))))

    def add(
        self,
        y: Float[Tensor, "n p"],
        own: Float[Tensor, "n p"],
        change: Float[Tensor, "n p"],
        terms: Sequence[Float[Tensor, "n p"]],
    ) -> None:
        """Some more entries."""
        self.add_output(y, own, change)
        self.add_terms(change, terms)

    def add_output(self, y: Float[Tensor, "n p"], own: Float[Tensor, "n p"], change: Float[Tensor, "n p"]) -> None:
        """Of an output, the output without its bias, and its change."""
        output = vecdot(y, y)
        self.output += output
        self.own += output if own is y else vecdot(own, own)
        self.change += vecdot(change, change)

    def add_terms(self, change: Float[Tensor, "n p"], terms: Sequence[Float[Tensor, "n p"]]) -> None:
        """Of the change and its terms, in the same coordinates."""
        self.terms += torch.stack([vecdot(term, term) for term in terms])
        self.along += torch.stack([vecdot(term, change) for term in terms])

    def shares(self, dtype: torch.dtype) -> Float[Tensor, "3 n"]:
        """Of each term in Δy; NaN where Δy is what cancelled terms leave, or rounding of y in this dtype."""
        floor = max(ROUNDING, torch.finfo(dtype).eps)
        known = (self.change > CANCELLED**2 * self.terms.amax(0)) & (self.change > floor**2 * self.output)
        return torch.where(known, self.along / self.change, float("nan"))


def _new(
    of_t: Float[Tensor, "n read"], of_w: Float[Tensor, "n read"], sums: _Sums, split: Split
) -> dict[str, Float[Tensor, " n"]]:
    """The direct term outside the pretrained subspaces, with its nulls, out of T x and W x along the basis."""
    direct, written, basis = sums.terms[0], sums.own, split.basis
    outside, outside_of_w = basis.cut.outside(of_t, direct), basis.cut_of_w.outside(of_w, written)
    found = {"amplified_norm": (direct - outside[0]).sqrt(), "new_norm": outside[0].sqrt()}
    for i, (name, k) in enumerate((("new_share", basis.cut.k), ("new_share_10", basis.cut.k10))):
        found[name] = outside[i] / direct  # 0/0 is NaN
        found[f"{name}_of_w"] = outside_of_w[i] / written
        found[f"{name}_null"] = torch.full_like(direct, 1 - k / split.rows)
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
