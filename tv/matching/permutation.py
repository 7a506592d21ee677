"""Which neurons and attention heads of two models correspond to each other: matching by linear assignment.

A model computes the same with its neurons or heads in another order. In a GLU the up row of a neuron may also be
scaled by any c ≠ 0 and its down column by 1/c. Two models can only be compared entry by entry once this is undone.
Sources: arXiv 2209.04836 (Ainsworth et al. 2023), weight matching without sign and scale; arXiv 1511.07543 (Li et al.
2015), matching by correlation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tv.matching.gauges import EXPLAINS

#: |c| of a neuron within this factor of 1 is a training step, not a rescaling.
SCALE_TOLERANCE = 1.1
_NEAR = 0.1  # squared relative distance at which a neuron that moved is the base's, but for training
_CHUNK = 1024  # rows of scores formed at a time
_TIE = 1e-5  # the least gain that moves a unit, of a unit's squared norm: twins and dead neurons stay


@dataclass(frozen=True)
class Matching:
    """The tuned unit that each base unit is matched with: unit i with unit `permutation[i]`."""

    permutation: Int[Tensor, " n"]
    scale: Float[Tensor, " n"] | None  # c, of either sign: up'[permutation]/c and down'·c fit the base's; None: no GLU
    score: Float[Tensor, " n"]  # of the matched units, in [−1, 1]
    identity_score: Float[Tensor, " n"]  # of units i and i, as they are

    @property
    def moved(self) -> Bool[Tensor, " n"]:
        """Units whose place changes."""
        return self.permutation != torch.arange(len(self.permutation))

    @property
    def flipped(self) -> Bool[Tensor, " n"]:
        """Neurons whose up row and down column change sign."""
        return torch.zeros_like(self.moved) if self.scale is None else self.scale < 0

    @property
    def rescaled(self) -> Bool[Tensor, " n"]:
        """Neurons whose up row and down column trade size: of those that move, by more than SCALE_TOLERANCE."""
        if self.scale is None:
            return torch.zeros_like(self.moved)
        size = self.scale.abs().log().abs()
        return (size > math.log(SCALE_TOLERANCE)) | (~self.moved & (size > 0))

    @property
    def is_identity(self) -> bool:
        """Whether every unit stays as it is."""
        return not bool((self.moved | self.flipped | self.rescaled).any())


def match_neurons(
    gate: Float[Tensor, "f d"],
    up: Float[Tensor, "f d"],
    down: Float[Tensor, "out f"],
    tuned_gate: Float[Tensor, "f d"],
    tuned_up: Float[Tensor, "f d"],
    tuned_down: Float[Tensor, "out f"],
) -> Matching:
    """The neurons of a GLU: the permutation that maximises Σ ⟨g, g'⟩ + |⟨u, u'⟩ + ⟨d, d'⟩|, each neuron's ‖u‖ = ‖d‖.

    Biases of gate and up go in as a last column. A score is divided by both neurons' norms √(‖g‖² + 2‖u‖‖d‖). A neuron
    that keeps its place and sign, or lies near the base's, has |c| = 1 exactly unless c explains how far it moved; the
    others take the base's ratio.
    """
    balance, tuned_balance = _balance(up, down), _balance(tuned_up, tuned_down)
    norm, tuned_norm = _glu_norm(gate, up, down), _glu_norm(tuned_gate, tuned_up, tuned_down)

    def scores(rows: slice) -> Float[Tensor, "rows f"]:
        factor = balance[rows, None] * tuned_balance
        odd = factor * (up[rows] @ tuned_up.T) + (down.T[rows] @ tuned_down) / factor
        return gate[rows] @ tuned_gate.T + odd.abs_()

    permutation = _assign(scores, len(norm), _tie(norm, tuned_norm))

    def parts(order: Int[Tensor, " f"]) -> tuple[Float[Tensor, " f"], Float[Tensor, " f"], Float[Tensor, " f"]]:
        factor = balance * tuned_balance[order]
        odd = factor * _dots(up, tuned_up, order) + _dots(down.T, tuned_down.T, order) / factor
        return _dots(gate, tuned_gate, order), odd, norm * tuned_norm[order]

    even, odd, norms = parts(permutation)
    even_here, odd_here, norms_here = parts(torch.arange(len(norm)))
    return Matching(
        permutation,
        _scale(permutation, odd, (up, down), (tuned_up, tuned_down)),
        _ratio(even + odd.abs(), norms),
        _ratio(even_here + odd_here, norms_here),
    )


def match_plain_neurons(
    up: Float[Tensor, "f d"],
    down: Float[Tensor, "out f"],
    tuned_up: Float[Tensor, "f d"],
    tuned_down: Float[Tensor, "out f"],
) -> Matching:
    """The neurons of an MLP without a GLU, whose activation fixes sign and scale: maximises Σ ⟨u, u'⟩ + ⟨d, d'⟩.

    A bias goes in as a last column of `up`. A score is divided by both neurons' norms √(‖u‖² + ‖d‖²).
    """
    norm = (up.pow(2).sum(1) + down.pow(2).sum(0)).sqrt()
    tuned_norm = (tuned_up.pow(2).sum(1) + tuned_down.pow(2).sum(0)).sqrt()
    permutation = _assign(
        lambda rows: up[rows] @ tuned_up.T + down.T[rows] @ tuned_down, len(norm), _tie(norm, tuned_norm)
    )

    def score(order: Int[Tensor, " f"]) -> Float[Tensor, " f"]:
        return _ratio(_dots(up, tuned_up, order) + _dots(down.T, tuned_down.T, order), norm * tuned_norm[order])

    return Matching(permutation, None, score(permutation), score(torch.arange(len(norm))))


def match_responses(
    correlation: Float[Tensor, "f f"],
    tokens: int,
    up: Float[Tensor, "f d"],
    down: Float[Tensor, "out f"],
    tuned_up: Float[Tensor, "f d"],
    tuned_down: Float[Tensor, "out f"],
) -> Matching:
    """The neurons of a GLU by how their activations correlate over `tokens`: the permutation that maximises Σ |r|.

    A neuron leaves its place, or takes the other sign there, only for more than the best of f unrelated neurons offers
    by chance, √(2 ln f / tokens). The sign of c is that of r; its size is read off the weights, as by `match_neurons`.
    """
    chance = _by_chance(correlation, tokens)
    permutation = _assign(lambda rows: correlation[rows].abs(), len(correlation), chance)
    matched = _at(correlation, permutation)
    certain = (matched.abs() > chance) | (permutation != torch.arange(len(permutation))).to(matched.device)
    scale = _scale(permutation, matched * certain, (up, down), (tuned_up, tuned_down))
    return Matching(permutation, scale, (matched * scale.sign().to(matched.device)).cpu(), correlation.diagonal().cpu())


def match_plain_responses(correlation: Float[Tensor, "f f"], tokens: int) -> Matching:
    """The neurons of an MLP without a GLU by how their activations correlate: maximises Σ r, as `match_responses`."""
    return _by_scores(correlation, _by_chance(correlation, tokens))


def match_heads(scores: Float[Tensor, "heads heads"], n_groups: int) -> tuple[Matching, Matching]:
    """(key-value groups, query heads): groups first, by the best assignment of queries inside each pair of groups.

    `scores` compares every base head with every tuned head. Queries of a group stay together: they share keys and
    values. `permutation` of the second counts heads over the whole layer.
    """
    size = len(scores) // n_groups
    blocks = scores.reshape(n_groups, size, n_groups, size).transpose(1, 2)
    inside = torch.empty(n_groups, n_groups, size, dtype=torch.long)
    between = torch.empty(n_groups, n_groups)
    for i in range(n_groups):
        for j in range(n_groups):
            inside[i, j] = _by_scores(blocks[i, j]).permutation
            between[i, j] = _at(blocks[i, j], inside[i, j]).mean()
    groups = _by_scores(between)
    chosen = inside[torch.arange(n_groups), groups.permutation]
    heads = (groups.permutation[:, None] * size + chosen).flatten()
    return groups, Matching(heads, None, _at(scores, heads), scores.diagonal())


@dataclass(frozen=True)
class Attention:
    """The matrices of one attention layer, head by head; a bias is a last column of query, key and value."""

    query: Float[Tensor, "heads d_qk d"]
    key: Float[Tensor, "groups d_qk d"]
    value: Float[Tensor, "groups d_v d"]
    output: Float[Tensor, "heads d_v out"]  # o's columns, transposed


def weight_scores(base: Attention, tuned: Attention) -> Float[Tensor, "heads heads"]:
    """Mean of two cosines for each pair of heads: of what they write, O V, and of where they look, Qᵀ K.

    A change of basis inside a head, V, O by any invertible matrix, or Q, K, changes neither.
    """
    writes = _form_cosines(base.output, tuned.output, *_grams(base.value, tuned.value))
    looks = _form_cosines(base.query, tuned.query, *_grams(base.key, tuned.key))
    return (writes + looks) / 2


def contribution_scores(
    output: Float[Tensor, "heads d_v out"],
    tuned_output: Float[Tensor, "heads d_v out"],
    cross: Float[Tensor, "heads d_v heads d_v"],
    gram: Float[Tensor, "heads d_v d_v"],
    tuned_gram: Float[Tensor, "heads d_v d_v"],
) -> Float[Tensor, "heads heads"]:
    """Cosine of what each pair of heads writes to the residual stream, O z, over all tokens at once.

    `cross` is Σ z z'ᵀ over tokens, of every pair of heads; `gram` and `tuned_gram` are Σ z zᵀ of each model's heads.
    """
    return _form_cosines(output, tuned_output, cross, gram, tuned_gram)


def _form_cosines(
    left: Float[Tensor, "heads d out"],
    tuned_left: Float[Tensor, "heads d out"],
    cross: Float[Tensor, "groups d groups d"],
    gram: Float[Tensor, "groups d d"],
    tuned_gram: Float[Tensor, "groups d d"],
) -> Float[Tensor, "heads heads"]:
    """Cosines of the matrices LᵀR, from their factors: ⟨LᵀR, L'ᵀR'⟩ = Σ (L L'ᵀ) ⊙ (R R'ᵀ), heads sharing an R.

    Of R only the products are needed: `cross` R R'ᵀ of every pair, `gram` R Rᵀ and `tuned_gram` R' R'ᵀ.
    """
    heads, d, _ = left.shape
    share = heads // len(gram)
    cosines = torch.empty(heads, heads)
    flat = tuned_left.flatten(0, 1)
    for head in range(heads):
        lefts = (left[head] @ flat.T).reshape(d, heads, d)
        rights = cross[head // share].repeat_interleave(share, dim=1)
        cosines[head] = (lefts * rights).sum((0, 2)).cpu()
    norms = (left @ left.mT * gram.repeat_interleave(share, 0)).sum((1, 2)).clamp(min=0).sqrt()
    tuned_norms = (tuned_left @ tuned_left.mT * tuned_gram.repeat_interleave(share, 0)).sum((1, 2)).clamp(min=0).sqrt()
    return _ratio(cosines, (norms[:, None] * tuned_norms).cpu())


def _grams(
    right: Float[Tensor, "groups d n"], tuned_right: Float[Tensor, "groups d n"]
) -> tuple[Float[Tensor, "groups d groups d"], Float[Tensor, "groups d d"], Float[Tensor, "groups d d"]]:
    groups, d, _ = right.shape
    cross = (right.flatten(0, 1) @ tuned_right.flatten(0, 1).T).reshape(groups, d, groups, d)
    return cross, right @ right.mT, tuned_right @ tuned_right.mT


def _by_chance(correlation: Float[Tensor, "f f"], tokens: int) -> float:
    """The largest of f chance correlations over independent tokens."""
    return math.sqrt(2 * math.log(max(2, len(correlation))) / max(1, tokens))


def _by_scores(scores: Float[Tensor, "n n"], margin: float = _TIE) -> Matching:
    permutation = _assign(lambda rows: scores[rows].clone(), len(scores), margin)
    return Matching(permutation, None, _at(scores, permutation).cpu(), scores.diagonal().cpu())


def _assign(scores: Callable[[slice], Float[Tensor, "rows n"]], n: int, margin: float) -> Int[Tensor, " n"]:
    """The permutation with the largest sum of scores, where a unit that stays in place has `margin` more.

    Where every row scores best in place, or no two rows share their best column, these columns are the answer
    and the n × n scores are never held at once. Otherwise they are, with scipy's copy in float64.
    """
    best = torch.empty(n, dtype=torch.long)
    stays = True

    def block(start: int) -> Float[Tensor, "rows n"]:
        values = scores(slice(start, start + _CHUNK))
        values.diagonal(start).add_(margin)
        return values

    for start in range(0, n, _CHUNK):
        values = block(start)
        highest, where = values.max(1)
        best[start : start + _CHUNK] = where.cpu()
        stays = stays and bool((values.diagonal(start) >= highest).all())
    if stays:
        return torch.arange(n)
    if len(best.unique()) == n:
        return best
    whole = torch.empty(n, n)
    for start in range(0, n, _CHUNK):
        whole[start : start + _CHUNK] = block(start)
    return torch.from_numpy(linear_sum_assignment(whole.numpy(), maximize=True)[1])


def _tie(norm: Float[Tensor, " n"], tuned_norm: Float[Tensor, " n"]) -> float:
    return _TIE * float((norm * tuned_norm).mean())


def _scale(
    permutation: Int[Tensor, " f"],
    odd: Float[Tensor, " f"],
    own: tuple[Float[Tensor, "f d"], Float[Tensor, "out f"]],
    tuned: tuple[Float[Tensor, "f d"], Float[Tensor, "out f"]],
) -> Float[Tensor, " f"]:
    """c of each neuron: signed as `odd`, and of the size that gives its tuned neuron the base's ‖u‖/‖d‖."""
    places = permutation.to(tuned[0].device)
    size = _balance(*own) / _balance(*tuned)[places]
    sign = torch.where(odd < 0, -1.0, 1.0)
    distance = _distances(own, (tuned[0][places], tuned[1][:, places]))
    as_it_is = distance(sign)
    stays = (sign > 0) & (places == torch.arange(len(places), device=places.device))
    explained = (as_it_is > 0) & (distance(sign * size) <= (1 - EXPLAINS) * as_it_is)
    kept = (stays | (as_it_is < _NEAR)) & ~explained
    return (torch.where(kept, 1.0, size) * sign).cpu()


def _distances(
    own: tuple[Float[Tensor, "f d"], Float[Tensor, "out f"]], tuned: tuple[Float[Tensor, "f d"], Float[Tensor, "out f"]]
) -> Callable[[Float[Tensor, " f"]], Float[Tensor, " f"]]:
    """By c: how far a neuron's up row and down column lie from the base's, squared, each in units of the base's."""
    (up, down), (tuned_up, tuned_down) = own, tuned
    ups, downs = (norms.clamp(min=1e-30) for norms in (up.norm(dim=1), down.norm(dim=0)))

    def distance(c: Float[Tensor, " f"]) -> Float[Tensor, " f"]:
        of_up, of_down = (up - tuned_up / c[:, None]).norm(dim=1), (down - tuned_down * c).norm(dim=0)
        return (of_up / ups).pow(2) + (of_down / downs).pow(2)

    return distance


def _balance(up: Float[Tensor, "f d"], down: Float[Tensor, "out f"]) -> Float[Tensor, " f"]:
    """What up is multiplied by, and down divided by, so that their norms are equal; 1 where one of them is zero."""
    ups, downs = (norms.double() for norms in (up.norm(dim=1), down.norm(dim=0)))
    return torch.where((ups > 0) & (downs > 0), downs / ups, 1.0).sqrt().float()


def _glu_norm(
    gate: Float[Tensor, "f d"], up: Float[Tensor, "f d"], down: Float[Tensor, "out f"]
) -> Float[Tensor, " f"]:
    return (gate.pow(2).sum(1) + 2 * up.norm(dim=1) * down.norm(dim=0)).sqrt()


def _dots(rows: Float[Tensor, "f d"], tuned_rows: Float[Tensor, "f d"], order: Int[Tensor, " f"]) -> Tensor:
    return (rows * tuned_rows[order.to(rows.device)]).sum(1)


def _at(scores: Float[Tensor, "n n"], permutation: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return scores.gather(1, permutation.to(scores.device)[:, None]).squeeze(1)


def _ratio(value: Tensor, of: Tensor) -> Tensor:
    """value/of, on the CPU; 0 where there is nothing to compare."""
    return torch.where(of > 0, value / of, 0.0).cpu()
