"""Changes of writing other than the order: norm gains moved into what reads the norm, and the bases of heads.

Each is undone where it explains how far the tuned tensors lie from the base's, and left alone otherwise: what training
moved is not a change of writing. Nearness is relative, so that no tensor counts more for its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.pairing import WeightPair
from tv.matching.conventions import Conventions
from tv.matching.gauges import apart, basis_change, explains, paired_change, spread
from tv.matching.permutation import SCALE_TOLERANCE, Attention
from tv.matching.reordered import Reordering
from tv.matching.units import Heads


@dataclass(frozen=True)
class Rewriting:
    """One change of writing of one layer, unit by unit: channels of a norm, or key-value groups.

    Scores are mean cosines of the tensors that it concerns, with the change undone and as they are.
    """

    layer: int
    kind: str  # norms, values, keys
    n: int
    changed: int  # units whose writing changes
    score: float
    identity_score: float


def rewrite_norm(order: Reordering, pair: WeightPair, norm: Module, conventions: Conventions) -> Rewriting | None:
    """Give the tuned norm the base's gain, and divide the columns of its readers by what that multiplies it by.

    None where it is not known what reads the norm. Where neurons or heads are permuted, too, the rows of the readers
    cannot be compared; then the norms of their columns must have moved against the gain.
    """
    offset, readers = conventions.offset(norm), conventions.readers(norm)
    if offset is None or not readers:
        return None
    gain, tuned_gain = (side.matrix(norm).double() + offset for side in (pair.base, pair.tuned))
    factor = gain / tuned_gain
    factor = torch.where(torch.isfinite(factor) & (factor != 0), factor, 1.0)
    parts = [apart([gain], [tuned_gain])]
    undone, moves = [apart([gain], [tuned_gain * factor])], []
    for reader in readers:
        own = pair.weight(reader)
        other = pair.tuned.matrix(reader)[: len(own)]
        parts.append(apart([own], [other]))
        undone.append(apart([own], [other / factor]))
        moves.append((reader.name, (other.norm(dim=0).double() / own.norm(dim=0).double()).log()))
    (before, here), (after, there) = _total(parts), _total(undone)
    far = float(factor.abs().log().abs().max()) > math.log(SCALE_TOLERANCE)
    changed = explains(before, after) or (far and _followed(factor, moves))
    if changed:
        order.gain(norm, factor, offset)
        for reader in {(reader.parameter, reader.expert): reader for reader in readers}.values():
            order.inputs(reader, torch.arange(len(factor)), 1 / factor)
    moved = int((factor != 1).sum()) if changed else 0
    return Rewriting(norm.layer, "norms", len(factor), moved, there if changed else here, here)


def rewrite_heads(order: Reordering, pair: WeightPair, heads: Heads, conventions: Conventions) -> Iterator[Rewriting]:
    """Bring the values, and queries and keys, of a layer into the base's bases; group by group, all in float64."""
    if not conventions.is_plain(heads.o):
        return
    own, other = (_double(heads.attention(side, "cpu")) for side in (pair.base, pair.tuned))
    share = len(own.query) // len(own.key)
    values = [
        _in_basis(*parts, None)
        for parts in zip(
            own.value, _stacked(own.output, share), other.value, _stacked(other.output, share), strict=True
        )
    ]
    if any(basis.changed for basis in values):
        order.mix_outputs(heads.v, torch.stack([basis.change for basis in values]), _widest(values, "spread"))
        order.mix_inputs(
            heads.o,
            torch.stack([basis.inverse for basis in values]).repeat_interleave(share, 0),
            _widest(values, "inverse_spread"),
        )
    yield _row(heads.layer, "values", values)
    pairs = conventions.rotary_pairs
    if pairs is None:
        return
    if heads.gains:
        yield from _rewrite_gains(order, pair, heads, conventions, pairs)
        return
    read, tuned_read = _stacked(own.query, share), _stacked(other.query, share)
    keys = [_in_basis(*parts, pairs) for parts in zip(own.key, read, other.key, tuned_read, strict=True)]
    if any(basis.changed for basis in keys):
        order.mix_outputs(heads.k, torch.stack([basis.change for basis in keys]), _widest(keys, "spread"))
        order.mix_outputs(
            heads.q,
            torch.stack([basis.inverse.T for basis in keys]).repeat_interleave(share, 0),
            _widest(keys, "inverse_spread"),
        )
    yield _row(heads.layer, "keys", keys)


@dataclass(frozen=True)
class _Basis:
    """The change of basis of one group, where it counts; otherwise the identity."""

    change: Float[Tensor, "d d"]
    changed: bool
    score: float
    identity_score: float
    spread: float = 1.0
    inverse_spread: float = 1.0

    @property
    def inverse(self) -> Float[Tensor, "d d"]:
        return torch.linalg.inv(self.change)


def _in_basis(
    written: Float[Tensor, "d n"],
    read: Float[Tensor, "d m"],
    tuned_written: Float[Tensor, "d n"],
    tuned_read: Float[Tensor, "d m"],
    pairs: Int[Tensor, "pairs 2"] | None,
) -> _Basis:
    before, here = apart([written, read], [tuned_written, tuned_read])
    same = _Basis(torch.eye(len(written), dtype=torch.float64), False, here, here)
    if not before:
        return same
    if pairs is None or not len(pairs):
        change = basis_change(written, read, tuned_written, tuned_read)
    else:
        change = paired_change(written, read, tuned_written, tuned_read, pairs)
        rest = torch.tensor(sorted({*range(len(written))} - {*pairs.flatten().tolist()}), dtype=torch.long)
        if len(rest):
            change[rest[:, None], rest] = basis_change(written[rest], read[rest], tuned_written[rest], tuned_read[rest])
    inverse = torch.linalg.inv(change).T
    after, there = apart([written, read], [change @ tuned_written, inverse @ tuned_read])
    if not explains(before, after):
        return same
    return _Basis(change, True, there, here, spread(change, tuned_written), spread(inverse, tuned_read))


def _rewrite_gains(
    order: Reordering, pair: WeightPair, heads: Heads, conventions: Conventions, pairs: Int[Tensor, "pairs 2"]
) -> Iterator[Rewriting]:
    """Where q and k are normalised head by head, a pair of rotated dimensions may trade size between their gains."""
    gains = {gain.name: gain for gain in heads.gains}
    width = heads.k.shape[0] // heads.k.n_heads
    if gains.keys() != {"q_norm", "k_norm"} or 2 * len(pairs) != width:
        return
    q, k = gains["q_norm"], gains["k_norm"]
    offsets = [conventions.offset(gain) for gain in (k, q)]
    if None in offsets or q.shape != (width,) or k.shape != (width,):
        return
    own, other = (_columns(side, (k, q), offsets) for side in (pair.base, pair.tuned))
    before, here = apart(own, other)
    change = paired_change(own[0], own[1], other[0], other[1], pairs, turns=False).diagonal()[:, None]
    after, there = apart(own, [change * other[0], other[1] / change])
    changed = explains(before, after)
    if changed:
        for gain, factor, offset in zip((k, q), (change, 1 / change), offsets, strict=True):
            order.gain(gain, factor[:, 0], offset or 0.0)
    yield Rewriting(heads.layer, "keys", 1, int(changed), there if changed else here, here)


def _columns(side: Checkpoint, gains: Sequence[Module], offsets: Sequence[float | None]) -> list[Tensor]:
    return [side.matrix(gain).double()[:, None] + (offset or 0.0) for gain, offset in zip(gains, offsets, strict=True)]


def _double(attention: Attention) -> Attention:
    return Attention(
        attention.query.double(), attention.key.double(), attention.value.double(), attention.output.double()
    )


def _stacked(heads: Float[Tensor, "heads d n"], share: int) -> Float[Tensor, "groups d all"]:
    """What the heads of a group have in each dimension, side by side."""
    return heads.unflatten(0, (-1, share)).transpose(1, 2).flatten(2)


def _widest(bases: Sequence[_Basis], name: str) -> float:
    return max(float(getattr(basis, name)) for basis in bases)


def _row(layer: int, kind: str, bases: Sequence[_Basis]) -> Rewriting:
    n = len(bases)
    scores = [sum(values) / n for values in zip(*((one.score, one.identity_score) for one in bases), strict=True)]
    return Rewriting(layer, kind, n, sum(basis.changed for basis in bases), *scores)


def _total(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    distances, cosines = zip(*parts, strict=True)
    return math.fsum(distances), math.fsum(cosines) / len(cosines)


def _followed(factor: Float[Tensor, " d"], moves: Sequence[tuple[str, Float[Tensor, " d"]]]) -> bool:
    """Whether most readers' column norms, whose logarithms moved by `moves`, moved as the factor says.

    Only of readers whose size is fixed: queries trade theirs with keys, values with the output, and up with down.
    """
    by_name: dict[str, list[Tensor]] = {}
    for name, move in moves:
        by_name.setdefault(name, []).append(move)
    paired = [(q + k) / 2 for q, k in zip(by_name.pop("q", []), by_name.pop("k", []), strict=True)]
    free = {"v", *(up for gate, up in (("gate", "up"), ("shared_gate", "shared_up")) if gate in by_name)}
    fixed = [*paired, *(move for name, group in by_name.items() if name not in free for move in group)]
    expected = factor.abs().log()
    agree = [explains(_energy(expected), _energy(move - expected)) for move in fixed]
    return 2 * sum(agree) > len(agree)


def _energy(values: Float[Tensor, " n"]) -> float:
    return float(values.pow(2).nansum())
