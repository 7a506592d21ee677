"""How far two gate patterns lie apart where open gates may shift: the edit distance of their bits.

Source: arXiv 2510.09359 (normalised Levenshtein distance of binary gate patterns).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein


def edit_distances(
    base: NDArray[np.bool_], tuned: NDArray[np.bool_], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normalised Levenshtein distance of each row's patterns, and its chance level; both (n,), quadratic in d_ff.

    The chance level has no closed form: it is the distance to one seeded shuffle of the tuned pattern, which keeps its
    active rate. Shuffling depends on the row's content and `seed` alone, so a row's value does not depend on its batch.
    """
    distance = np.empty(len(base), np.float32)
    chance = np.empty(len(base), np.float32)
    order = np.random.default_rng(seed).permutation(base.shape[1])
    for i, (a, b) in enumerate(zip(base.view(np.uint8), tuned.view(np.uint8), strict=True)):
        distance[i], chance[i] = _edits(a, b), _edits(a, b[order])
    return distance, chance


def _edits(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """The normalised distance. It is never more than Hamming's, which bounds the search."""
    return float(Levenshtein.distance(a.tobytes(), b.tobytes(), score_cutoff=int(np.count_nonzero(a != b)))) / len(a)
