"""Changes of writing other than the order: norm gains moved into what reads the norm, and the bases of heads.

Each is undone where it explains how far the tuned tensors lie from the base's, and left alone otherwise: what training
moved is not a reparametrisation. Nearness is relative, so that no tensor counts more for its size.
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
from tv.matching.units import Heads, by_head


@dataclass(frozen=True)
class Rewriting:
    """One reparametrisation of one layer, unit by unit: channels of a norm, or key-value groups.

    Scores are mean cosines of a group's tensors, or the cosine of the gains, with the change undone and as they are.
    """

    layer: int
    kind: str  # norms, values, keys
    n: int
    changed: int  # units whose writing changes
    score: float
    identity_score: float


def rewrite_norm(order: Reordering, pair: WeightPair, norm: Module, conventions: Conventions) -> Rewriting | None:
    """Give the tuned norm the base's gain, and divide the columns of its readers by what that multiplies it by.

    None where it is not known what reads the norm. Where neurons or heads are written differently, too, the rows of the
    readers cannot be compared; then their columns must have become as much larger as the gain became smaller.
    """
    offset, readers = conventions.offset(norm), conventions.readers(norm)
    if offset is None or not readers:
        return None
    gain, tuned_gain = (side.matrix(norm).double() + offset for side in (pair.base, pair.tuned))
    factor = gain / tuned_gain
    factor = torch.where(torch.isfinite(factor) & (factor != 0), factor, 1.0)
    before, here = apart([gain], [tuned_gain])
    after, there = apart([gain], [tuned_gain * factor])
    for reader in readers:
        own = pair.weight(reader)
        other = pair.tuned.matrix(reader)[: len(own)]
        before += apart([own], [other])[0]
        after += apart([own], [other / factor])[0]
    far = float(factor.abs().log().abs().max()) > math.log(SCALE_TOLERANCE)
    changed = explains(before, after) or (far and _followed(factor, pair, readers))
    if changed:
        _move(order, norm, readers, factor, offset)
    moved = int((factor != 1).sum()) if changed else 0
    return Rewriting(norm.layer, "norms", len(factor), moved, there if changed else here, here)


def settle_norm(order: Reordering, pair: WeightPair, norm: Module, conventions: Conventions) -> None:
    """Share what training did to a channel between gain and readers, once their rows stand where the base's do.

    `rewrite_norm` left all of it to the readers. One Gauss–Newton step in log c brings both nearest to the base's.
    """
    offset, readers = conventions.offset(norm), conventions.readers(norm)
    assert offset is not None
    gain = pair.base.matrix(norm).double() + offset
    weight = gain.pow(2) / gain.pow(2).sum()
    pull = torch.zeros_like(gain)
    for reader in readers:
        own = pair.weight(reader).double()
        other = pair.tuned.matrix(reader)[: len(own)].double()
        size = own.pow(2).sum().clamp(min=1e-300)
        pull += ((other - own) * other).sum(0) / size
        weight += other.pow(2).sum(0) / size
    factor = torch.where(weight > 0, pull / weight, 0.0).exp()
    if bool((factor != 1).any()):
        _move(order, norm, readers, factor, offset)


def _move(
    order: Reordering, norm: Module, readers: Sequence[Module], factor: Float[Tensor, " d"], offset: float
) -> None:
    order.gain(norm, factor, offset)
    for reader in {(reader.parameter, reader.expert): reader for reader in readers}.values():
        order.inputs(reader, torch.arange(len(factor)), 1 / factor)


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


def _followed(factor: Float[Tensor, " d"], pair: WeightPair, readers: Sequence[Module]) -> bool:
    """Whether the channels of most readers grew by the factor, in any order and basis of their rows."""
    sizes = [_channels(side, readers) for side in (pair.base, pair.tuned)]
    expected = factor.abs().log()
    agree = []
    for own, other in zip(*sizes, strict=True):
        grown = (other[: len(own)] / own).log()
        agree.append(explains(_energy(expected), _energy(grown - expected)))
    return 2 * sum(agree) > len(agree)


def _channels(side: Checkpoint, readers: Sequence[Module]) -> list[Float[Tensor, " d"]]:
    """The size of every channel in each reader: of queries and keys in their product, which no basis changes.

    Left out are values, and up beside a gate, which trade their size with what reads them.
    """
    by_name = {reader.name: reader for reader in readers}
    free = {"q", "k", "v", *(up for gate, up in (("gate", "up"), ("shared_gate", "shared_up")) if gate in by_name)}
    sizes = [side.matrix(reader).double().norm(dim=0) for reader in readers if reader.name not in free]
    if {"q", "k"} <= by_name.keys():
        query, key = (by_head(side.matrix(by_name[n]).double(), by_name[n].n_heads) for n in ("q", "k"))
        products = (query * key.repeat_interleave(len(query) // len(key), 0)).sum(1)
        sizes.append(products.norm(dim=0).sqrt())
    return sizes


def _energy(values: Float[Tensor, " n"]) -> float:
    return float(values.pow(2).nansum())
