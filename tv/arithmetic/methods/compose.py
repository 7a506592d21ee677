"""Tuning vectors merged into one: how the λ_i T_i of one parameter become a T.

No method is better as such: over four families of language models only plain addition helped reliably (arXiv
2511.21437). `docs/arithmetic.md` says what λ means and what each does to parameters that are no matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pydantic.fields import FieldInfo
from torch import Tensor

from tv.arithmetic.methods.elementwise import addition
from tv.arithmetic.methods.layout import Piece
from tv.arithmetic.methods.terms import METHODS, Merge, Method, RowMethod, Terms, by_rows, for_no_matrix, moves
from tv.runtime.options import options_of, validated


def check_method(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the method takes them. Raises InputError for an unknown method or option."""
    return validated(METHODS.one(method), options, f"method {method!r}")


def options_of_methods() -> dict[str, FieldInfo]:
    """The options of every method by name, each with its purpose and the methods that take it."""
    by_method = {method: options_of(METHODS[method]) for method in METHODS}
    options: dict[str, FieldInfo] = {}
    for accepted in by_method.values():
        options = options | {name: option for name, option in accepted.items() if name not in options}
    for name, option in options.items():
        takers = ", ".join(method for method, accepted in by_method.items() if name in accepted)
        said = option.description or name
        option.description = f"{takers}: {said[0].lower()}{said[1:]}"
    return options


def compose(
    method: str,
    pieces: Sequence[Piece],
    deltas: Sequence[Tensor],
    weight: Tensor,
    *,
    seed: int = 0,
    options: Mapping[str, float] | None = None,
) -> Merge:
    """The merge of one parameter (or one expert of it) over all of its `pieces`, each by the method or its fallback.

    `deltas` are the T_i and `weight` the W, as stored, float32. A vector that does not move a piece takes no part in
    it. Returns scales, one a vector and none of them 0 → the merged T, as stored.
    """
    runs = []
    for piece in pieces:
        parts = [piece.take(delta) for delta in deltas]
        moving = [i for i, delta in enumerate(parts) if moves(delta)]
        if moving:
            run = _method_of(piece, method)
            chosen = options if run is METHODS[method] and options else {}
            terms = Terms(tuple(parts[i] for i in moving), piece.take(weight), key_of(piece, seed))
            runs.append((piece, moving, run(terms, **chosen)))

    def merge(scales: Sequence[float]) -> Tensor:
        total = torch.zeros_like(weight)
        for piece, moving, run in runs:
            piece.put(total, run([scales[i] for i in moving]))
        return total

    return merge


def rows_of_piece(method: str, piece: Piece, options: Mapping[str, Any]) -> RowMethod | None:
    """What merges a piece a few rows at a time, given readers and a key; None where it is merged whole.

    What depends on the order of entries sees them in the order that they have in the piece.
    """
    chosen = _method_of(piece, method)
    found = by_rows(chosen)
    in_order = not piece.transposed and list(piece.ranges) == sorted(piece.ranges)
    if found is None or not (in_order or chosen is addition):
        return None
    return partial(found, **options) if chosen is METHODS[method] else found


def key_of(piece: Piece, seed: int) -> str:
    """What random draws for a piece depend on."""
    return f"{seed} {piece.parameter} {piece.expert}"


def is_entrywise(method: str) -> bool:
    """Whether a method treats matrices as it does all else: it decomposes none."""
    return for_no_matrix(METHODS[method]) is METHODS[method]


def _method_of(piece: Piece, method: str) -> Method:
    return METHODS[method] if piece.is_matrix else for_no_matrix(METHODS[method])
