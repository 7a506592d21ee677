"""How the vectors of a merge conflict, measured on the tensors as they are merged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tv.arithmetic.methods.layout import Piece
from tv.arithmetic.methods.terms import moves
from tv.measures.cosine import Sums, counts_of, sums_from
from tv.measures.decomposition import FIXED_FRACTION
from tv.measures.overlap import Overlap, component_products, cross_gram, directions, overlap


class Conflicts:
    """What adds up over every two vectors of a merge, piece by piece; the measures are those of `tv.cosine`.

    With `whole`, those of whole matrices too, which take a decomposition of every T.
    """

    def __init__(self, names: Sequence[str], whole: bool = False) -> None:
        self._pairs = list(combinations(range(len(names)), 2))
        self._names, self.whole = names, whole and len(names) > 1
        self._shapes: dict[Piece, tuple[int, ...]] = {}  # in rows, those of the first
        self._counts: dict[tuple[int, int], dict[Piece, Tensor]] = defaultdict(dict)
        self._components: dict[tuple[int, int], dict[Piece, float]] = defaultdict(dict)
        self._shared: dict[tuple[int, int], list[Overlap]] = defaultdict(list)

    def add(self, piece: Piece, deltas: Sequence[Float[Tensor, "..."]]) -> None:
        """Add a piece of every vector, or rows of it, all of one shape: zeros where a vector does not move it."""
        deltas = [torch.atleast_1d(delta) for delta in deltas]
        self._shapes.setdefault(piece, tuple(deltas[0].shape))
        for i, j in self._pairs:
            counts, before = counts_of(deltas[i], deltas[j]), self._counts[i, j].get(piece)
            self._counts[i, j][piece] = counts if before is None else before + counts
        if self.whole and deltas[0].ndim == 2:
            self._add_directions(piece, deltas)

    def _add_directions(self, piece: Piece, deltas: Sequence[Float[Tensor, "m n"]]) -> None:
        decomposed = {i: directions(delta) for i, delta in enumerate(deltas) if moves(delta)}
        for i, j in (pair for pair in self._pairs if set(pair) <= decomposed.keys()):
            cross = cross_gram(deltas[i], deltas[j])
            self._components[i, j][piece] = component_products(decomposed[i], decomposed[j], cross)
            shared = overlap(decomposed[i], decomposed[j], cross, FIXED_FRACTION) if piece.is_matrix else None
            self._shared[i, j] += [shared] if shared is not None else []

    def frame(self) -> pd.DataFrame:
        """A row per unordered pair: `a b cosine cosine_z sign_conflict sign_conflict_null conflict_energy`, and of
        whole matrices `cosine_shared_z` and `overlap_left_kappa overlap_right_kappa`, means over the matrices that both
        move (NaN without any)."""
        return pd.DataFrame([self._row(*pair) for pair in self._pairs], columns=_COLUMNS)

    def _row(self, i: int, j: int) -> list[object]:
        sums, overlaps = sum(self._sums(i, j), Sums()), self._shared[i, j]
        kappas = [
            sum(getattr(shared, side).overlap_kappa for shared in overlaps) / len(overlaps) if overlaps else math.nan
            for side in ("left", "right")
        ]
        return [
            self._names[i],
            self._names[j],
            sums.cosine,
            sums.z,
            sums.against / sums.counted if sums.counted else math.nan,
            sums.against_null / sums.counted if sums.counted else math.nan,
            sums.product_against / sums.product if sums.product else math.nan,
            sums.shared_z,
            *kappas,
        ]

    def _sums(self, i: int, j: int) -> Iterator[Sums]:
        for piece, counts in self._counts[i, j].items():
            sums = sums_from(counts, self._shapes[piece])
            components = self._components[i, j].get(piece)
            yield sums if components is None else replace(sums, components=components)


_COLUMNS = [
    *("a", "b", "cosine", "cosine_z", "sign_conflict", "sign_conflict_null", "conflict_energy"),
    *("cosine_shared_z", "overlap_left_kappa", "overlap_right_kappa"),
]
