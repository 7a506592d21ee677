"""Edit distance of gate patterns."""

import numpy as np
import pytest

from probes.measures.edit_distance import edit_distances


def test_edit_distance_sees_a_shift_that_hamming_does_not() -> None:
    base = np.tile([True, False], 20)[None]
    shifted = np.roll(base, 1, axis=1)
    assert (base ^ shifted).mean() == 1
    distance, chance = edit_distances(base, shifted, seed=0)
    assert distance[0] == pytest.approx(2 / 40)
    assert 0.1 < chance[0] < 0.5


def test_edit_distance_of_a_row_does_not_depend_on_its_batch() -> None:
    rows = np.random.default_rng(0).random((2, 6, 50)) > 0.5
    together = edit_distances(*rows, seed=3)
    alone = [edit_distances(rows[0][i : i + 1], rows[1][i : i + 1], seed=3) for i in range(6)]
    for column in (0, 1):
        assert np.array_equal(together[column], np.concatenate([pair[column] for pair in alone]))
