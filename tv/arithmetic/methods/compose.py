"""Tuning vectors merged into one: how the λ_i T_i of one parameter become a T.

No method is better as such: over four families of language models only plain addition helped reliably (arXiv
2511.21437). What λ means and what each does to parameters that are no matrix is in `docs/arithmetic.md`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tv.arithmetic.methods.elementwise import addition, dare, mean, model_stock, ties
from tv.arithmetic.methods.layout import Piece, layout
from tv.arithmetic.methods.spectral import deflate, iso_c, split_inside, split_outside, tsv_m, wudi
from tv.arithmetic.methods.terms import Merge, Method, Terms
from tv.errors import InputError

__all__ = ["METHODS", "Merge", "Method", "Piece", "Terms", "check_method", "compose", "layout"]

#: Every method by name: what it does to a matrix.
METHODS: dict[str, Method] = {
    "sum": addition,
    "ties": ties,
    "dare": dare,
    "model-stock": model_stock,
    "tsv-m": tsv_m,
    "iso-c": iso_c,
    "wudi": wudi,
    "deflate": deflate,
    "split-inside": split_inside,
    "split-outside": split_outside,
}
#: What those that need a matrix do to gains, biases and embeddings: the mean of their papers, or the sum.
OTHERWISE: dict[Method, Method] = {
    tsv_m: mean,
    iso_c: mean,
    wudi: addition,
    deflate: addition,
    split_inside: addition,
    split_outside: addition,
}


def check_method(method: str, options: Mapping[str, float]) -> None:
    """Raise InputError for a method that is none, or an option that it does not take."""
    if method not in METHODS:
        raise InputError(f"method {method!r}: one of {', '.join(METHODS)}")
    known = list(inspect.signature(METHODS[method]).parameters)[1:]
    odd = next((name for name in options if name not in known), None)
    if odd is not None:
        takes = f"takes {', '.join(known)}" if known else "takes no options"
        raise InputError(f"method {method!r} has no option {odd!r}; it {takes}")
    for name, value in options.items():
        if not 0 < value <= 1:
            raise InputError(f"{name} {value}: a share, above 0 and at most 1")


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
    of_matrix = METHODS[method]
    runs = []
    for piece in pieces:
        own = [piece.take(delta) for delta in deltas]
        moving = [i for i, delta in enumerate(own) if bool(delta.any())]
        if moving:
            run = of_matrix if piece.is_matrix else OTHERWISE.get(of_matrix, of_matrix)
            chosen = options if run is of_matrix and options else {}
            terms = Terms(tuple(own[i] for i in moving), piece.take(weight), f"{seed} {piece.parameter} {piece.expert}")
            runs.append((piece, moving, run(terms, **chosen)))

    def merge(scales: Sequence[float]) -> Tensor:
        total = torch.zeros_like(weight)
        for piece, moving, run in runs:
            piece.put(total, run([scales[i] for i in moving]))
        return total

    return merge
