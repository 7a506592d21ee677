"""How the vectors of a merge conflict, measured on the tensors as they are merged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tv.measures.cosine import Sums, sums_of
from tv.measures.decomposition import FIXED_FRACTION
from tv.measures.overlap import Overlap, component_products, cross_gram, directions, overlap


class Conflicts:
    """Running sums over every two vectors of a merge; the measures are those of `tv.cosine`."""

    def __init__(self, names: Sequence[str]) -> None:
        self._pairs = list(combinations(range(len(names)), 2))
        self._names = names
        self._sums: dict[tuple[int, int], Sums] = defaultdict(Sums)
        self._shared: dict[tuple[int, int], list[Overlap]] = defaultdict(list)

    def add(self, deltas: Sequence[Float[Tensor, "..."]], is_matrix: bool) -> None:
        """Add one piece of every vector, all of one shape, zeros where a vector does not move it."""
        if not self._pairs:
            return
        decomposed = [directions(delta) if delta.ndim == 2 and bool(delta.any()) else None for delta in deltas]
        for i, j in self._pairs:
            sums = sums_of(torch.atleast_1d(deltas[i]), torch.atleast_1d(deltas[j]))
            first, second = decomposed[i], decomposed[j]
            if first is not None and second is not None:
                cross = cross_gram(deltas[i], deltas[j])
                sums = replace(sums, components=component_products(first, second, cross))
                shared = overlap(first, second, cross, FIXED_FRACTION) if is_matrix else None
                self._shared[i, j] += [shared] if shared is not None else []
            self._sums[i, j] += sums

    def frame(self) -> pd.DataFrame:
        """A row per unordered pair: `a b cosine cosine_shared_z sign_conflict sign_conflict_null conflict_energy`, and
        `overlap_left_kappa overlap_right_kappa`, means over the matrices that both move (NaN without any)."""
        return pd.DataFrame([self._row(*pair) for pair in self._pairs], columns=_COLUMNS)

    def _row(self, i: int, j: int) -> list[object]:
        sums, overlaps = self._sums[i, j], self._shared[i, j]
        kappas = [
            sum(getattr(shared, side).overlap_kappa for shared in overlaps) / len(overlaps) if overlaps else math.nan
            for side in ("left", "right")
        ]
        return [
            self._names[i],
            self._names[j],
            sums.cosine,
            sums.shared_z,
            sums.against / sums.counted if sums.counted else math.nan,
            sums.against_null / sums.counted if sums.counted else math.nan,
            sums.product_against / sums.product if sums.product else math.nan,
            *kappas,
        ]


_COLUMNS = [
    *("a", "b", "cosine", "cosine_shared_z", "sign_conflict", "sign_conflict_null", "conflict_energy"),
    *("overlap_left_kappa", "overlap_right_kappa"),
]
