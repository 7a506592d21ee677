"""Tuning vectors fitted to a checkpoint and merged there by a method, one parameter at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tv.arithmetic.conflicts import Conflicts
from tv.arithmetic.methods.compose import check_method, compose, is_entrywise, key_of, rows_of_piece
from tv.arithmetic.methods.layout import Piece, layout
from tv.arithmetic.methods.terms import RowMethod, moves
from tv.arithmetic.rounding import Rounding, stored, stored_dtype
from tv.arithmetic.selection import select
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.extraction import extract
from tv.checkpoints.location import kind_of
from tv.checkpoints.opening import Source
from tv.checkpoints.pairing import open_pair
from tv.checkpoints.parameters import Rows, rows_of
from tv.checkpoints.tokenizers import vocabulary_of
from tv.checkpoints.vector import TuningVector, base_of
from tv.errors import CheckpointError, InputError
from tv.measures.cosine import PIECE
from tv.runtime.threads import one_thread


@dataclass(frozen=True)
class Brought:
    """A tuning vector that fits a checkpoint, whatever source it came from."""

    label: str
    vector: TuningVector
    notes: tuple[str, ...] = ()
    tokens: tuple[Tensor, Tensor] | None = None  # rows there, rows of T, where the tokenizers number tokens otherwise

    def delta(self, name: str, expert: int, shape: Sequence[int], is_vocabulary: bool) -> Float[Tensor, "..."]:
        """T of a parameter, or of one expert of it, float32, in the rows of the checkpoint it was brought to."""
        delta = self.vector[name] if expert < 0 else self.vector.expert(name, expert)
        if not is_vocabulary or (tuple(delta.shape) == tuple(shape) and self.tokens is None):
            return delta.float()
        rows = torch.arange(min(len(delta), shape[0]))
        there, here = self.tokens or (rows, rows)
        fitted = torch.zeros(tuple(shape))
        fitted[there] = delta[here].float()
        return fitted

    def rows(self, name: str, expert: int, shape: Sequence[int], is_vocabulary: bool) -> Rows:
        """The same T, a few rows at a time."""
        if is_vocabulary and (self.vector.shapes[name] != tuple(shape) or self.tokens is not None):
            return rows_of(self.delta(name, expert, shape, is_vocabulary))
        return self.vector.rows(name, expert)


def bring(source: Source, checkpoint: Checkpoint, origin: Source | None = None) -> Brought:
    """The tuning vector of `source`, for `checkpoint`: a vector or its file as it is, anything else minus its base.

    That base is `origin`, or the checkpoint itself. Raises CheckpointError naming the first tensor that does not fit.
    """
    label = _label(source)
    notes: list[str] = []
    if isinstance(source, TuningVector):
        vector = source
    elif isinstance(source, str | Path) and Path(source).is_file() and kind_of(Path(source)) == "vector":
        vector = TuningVector.load(source)
    else:
        pair = open_pair(origin if origin is not None else checkpoint, source)
        if pair.tuned.fingerprint() == pair.base.fingerprint():
            raise CheckpointError(
                f"{label}: is {pair.base.source} itself, so that nothing would move; if {checkpoint.source} is not "
                "what it was tuned from, name that base as its origin"
            )
        vector, notes = extract(pair.base, pair.tuned), list(pair.facts.notes)
    under = base_of(vector, checkpoint)
    _require_fit(label, vector, under)
    named = vector.base
    if named is None:
        notes.append(f"{label}: does not say which base it was extracted from; it is applied to {checkpoint.source}")
    elif named.get("content") not in (under.fingerprint()["content"], checkpoint.fingerprint()["content"]):
        notes.append(
            f"{label}: was extracted from {named.get('source')}, which has another fingerprint than {checkpoint.source}"
        )
    tokens = _tokens(label, vector, checkpoint)
    if tokens is not None:
        notes.append(f"{label}: its tokenizer numbers tokens differently; the {len(tokens[0])} in common move by name")
    return Brought(label, vector, tuple(dict.fromkeys(notes)), tokens)


def of_one_form(checkpoint: Checkpoint, brought: Sequence[Brought]) -> tuple[Checkpoint, list[Brought]]:
    """The checkpoint and the vectors with the unembedding apart from the embedding, where one vector parts them."""
    forms = [base_of(one.vector, checkpoint) for one in brought]
    untied = next((form for form in forms if form is not checkpoint), None)
    if untied is None:
        return checkpoint, list(brought)
    embed, unembed = (f"{end}.weight" for end in (untied.architecture.embed, untied.architecture.unembed))
    return untied, [replace(one, vector=one.vector.untied(embed, unembed)) for one in brought]


class Merged:
    """A checkpoint moved along vectors, by a method, where patterns say: read a parameter (or an expert) at a time.

    Every read adds to `rounding` and `conflicts`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        brought: Sequence[Brought],
        scales: Sequence[float],
        *,
        method: str = "sum",
        options: Mapping[str, float] | None = None,
        only: Iterable[str] = (),
        exclude: Iterable[str] = (),
        dtype: torch.dtype = torch.float32,
        stochastic: bool = False,
        seed: int = 0,
        conflicts: bool = True,
        directions: bool = False,
    ) -> None:
        """Raises InputError for an invalid method, option, scale or pattern."""
        taken = check_method(method, options or {})
        odd = next((scale for scale in scales if not math.isfinite(scale)), None)
        if odd is not None:
            raise InputError(f"scale {odd}: a tuning vector is scaled by a finite number")
        if stochastic and dtype != torch.bfloat16:
            raise InputError("stochastic rounding is for bfloat16: float32 needs none")
        self.checkpoint, self.method, self.options = checkpoint, method, taken
        self._terms = [(one, scale) for one, scale in zip(brought, scales, strict=True) if scale]
        shapes = {name: checkpoint.info(name).shape for name in checkpoint.values}
        self.pieces = select(layout(checkpoint.architecture, shapes), only, exclude)
        self._dtype, self._stochastic, self._seed = dtype, stochastic, seed
        ends = checkpoint.architecture.embed, checkpoint.architecture.unembed
        self._vocabulary = {name for name in shapes if name.rpartition(".")[0] in ends}
        self.rounding = Rounding()
        self.conflicts = Conflicts([one.label for one, _ in self._terms] if conflicts or directions else [], directions)

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        """W + T of a parameter, or of one expert of it, in the dtype to store; W alone where nothing moves."""
        parts = list(self.parts(name, expert))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def parts(self, name: str, expert: int = -1) -> Iterator[Float[Tensor, "..."]]:
        """The same in successive rows: a few at a time where the method allows it, otherwise all at once."""
        weight, dtype = self.checkpoint.read(name, expert), stored_dtype(self.checkpoint, name, self._dtype)
        pieces = [piece for piece in self.pieces.get(name, ()) if expert < 0 or piece.expert in (expert, -1)]
        if not pieces or not any(name in one.vector.shapes for one, _ in self._terms):
            yield weight.to(dtype)
        elif (methods := self._by_rows(weight, pieces)) is not None:
            with one_thread():
                yield from self._rows(name, expert, weight, methods, dtype)
        elif is_entrywise(self.method) and not self.conflicts.whole:
            with one_thread():
                yield self._whole(name, expert, weight, pieces, dtype)
        else:
            yield self._whole(name, expert, weight, pieces, dtype)

    def _by_rows(self, weight: Float[Tensor, "..."], pieces: Sequence[Piece]) -> dict[Piece, RowMethod] | None:
        """What merges each piece a few rows at a time; None where the parameter is merged whole."""
        if self._stochastic or self.conflicts.whole or weight.ndim not in (1, 2) or not weight.numel():
            return None
        found = {piece: rows_of_piece(self.method, piece, self.options) for piece in pieces}
        known = {piece: method for piece, method in found.items() if method is not None}
        return known if len(known) == len(found) else None

    def _rows(
        self,
        name: str,
        expert: int,
        weight: Float[Tensor, "rows ..."],
        methods: Mapping[Piece, RowMethod],
        dtype: torch.dtype,
    ) -> Iterator[Float[Tensor, "n ..."]]:
        words, scales = name in self._vocabulary, [scale for _, scale in self._terms]
        terms = [
            one.rows(name, expert, weight.shape, words) if name in one.vector.shapes else None for one, _ in self._terms
        ]
        count = max(1, PIECE // math.prod(weight.shape[1:]))
        spans = [(start, min(start + count, len(weight))) for start in range(0, len(weight), count)]

        def rows_of_term(term: Rows | None, start: int, stop: int) -> Tensor:
            return term(start, stop).float() if term is not None else torch.zeros(stop - start, *weight.shape[1:])

        def whole(term: Rows | None, piece: Piece) -> Tensor:
            """A T_i of a piece, for methods that look at all of it first."""
            delta = torch.empty(weight.shape)
            for start, stop in spans:
                delta[start:stop] = rows_of_term(term, start, stop)
            return piece.take(delta)

        def deltas(start: int, stop: int) -> list[tuple[Piece, Piece, list[Tensor]]]:
            """Of every piece that has some of these rows: itself, its share of them, and every T_i there."""
            stored_rows = [rows_of_term(term, start, stop) for term in terms]
            shares = [(piece, share) for piece in pieces if (share := piece.within(start, stop)) is not None]
            return [(piece, share, [share.take(delta) for delta in stored_rows]) for piece, share in shares]

        pieces = list(methods)
        begin = {
            piece: method([partial(whole, term, piece) for term in terms], key_of(piece, self._seed))
            for piece, method in methods.items()
        }
        # An entry that is −0 stays so only in a parameter that nothing moves.
        first = {piece: begun(scales) for piece, begun in begin.items()}
        moved = any(moves(first[piece](parts)) for span in spans for piece, _, parts in deltas(*span))
        steps = {piece: begun(scales) for piece, begun in begin.items()}
        for start, stop in spans:
            rows = weight[start:stop]
            total = torch.zeros(rows.shape)
            for piece, share, parts in deltas(start, stop):
                self.conflicts.add(piece, parts)
                share.put(total, steps[piece](parts))
            value, lost = stored(rows, total, dtype) if moved else (rows.to(dtype), Rounding())
            self.rounding += lost
            yield value

    def _whole(
        self, name: str, expert: int, weight: Float[Tensor, "..."], pieces: Sequence[Piece], dtype: torch.dtype
    ) -> Float[Tensor, "..."]:
        words = name in self._vocabulary
        deltas = [
            one.delta(name, expert, weight.shape, words) if name in one.vector.shapes else torch.zeros(weight.shape)
            for one, _ in self._terms
        ]
        for piece in pieces:
            self.conflicts.add(piece, [piece.take(delta) for delta in deltas])
        merge = compose(self.method, pieces, deltas, weight.float(), seed=self._seed, options=self.options)
        delta = merge([scale for _, scale in self._terms])
        if not moves(delta):
            return weight.to(dtype)
        key = f"rounding {self._seed} {name} {expert}" if self._stochastic and dtype == torch.bfloat16 else None
        value, lost = stored(weight, delta, dtype, key)
        self.rounding += lost
        return value


def _label(source: Source) -> str:
    if isinstance(source, TuningVector):
        origin: dict[str, Any] = source.provenance.get("tuned", {})
        return Path(str(origin.get("source", "tuning vector"))).name
    if isinstance(source, str | Path):
        return Path(source).stem if Path(source).suffix == ".safetensors" else Path(source).name or str(source)
    return Path(source.source).name if isinstance(source, Checkpoint) else type(source).__name__


def _require_fit(label: str, vector: TuningVector, checkpoint: Checkpoint) -> None:
    ends = checkpoint.architecture.embed, checkpoint.architecture.unembed
    names = set(checkpoint.values)
    for name, shape in vector.shapes.items():
        if name not in names:
            raise CheckpointError(
                f"{label}: does not fit {checkpoint.source}: it moves tensor {name!r}, which is not there"
            )
        expected = checkpoint.info(name).shape
        if shape != expected and not (name.rpartition(".")[0] in ends and shape[1:] == expected[1:]):
            raise CheckpointError(
                f"{label}: does not fit {checkpoint.source}: tensor {name!r} has shape {list(shape)} in the vector and "
                f"{list(expected)} there"
            )


def _tokens(label: str, vector: TuningVector, checkpoint: Checkpoint) -> tuple[Tensor, Tensor] | None:
    """(rows there, rows of T) of the tokens that both tokenizers know; None where rows correspond as they stand."""
    source = (vector.base or {}).get("source")
    theirs = vocabulary_of(Path(source)) if source and Path(source).is_dir() else None
    ours = vocabulary_of(checkpoint.path)
    if theirs is None or ours is None:
        return None
    taken = set(ours.values())
    if all(ours[token] == i if token in ours else i not in taken for token, i in theirs.items()):
        return None
    rows = vector.shapes.get(f"{checkpoint.architecture.embed}.weight", (0,))[0]
    size = checkpoint.architecture.vocab_size
    pairs = [(ours[token], i) for token, i in theirs.items() if token in ours and i < rows and ours[token] < size]
    if not pairs:
        raise CheckpointError(f"{label}: its tokenizer has no token in common with {checkpoint.source}'s")
    there, here = zip(*sorted(pairs), strict=True)
    return torch.tensor(there), torch.tensor(here)
