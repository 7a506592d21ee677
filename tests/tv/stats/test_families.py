"""Corrections by hand."""

import numpy as np
import pytest

from tv.stats.families import benjamini_hochberg, holm


def test_benjamini_hochberg_by_hand() -> None:
    """Sorted p 0.005, 0.01, 0.03, 0.04, 0.5 of m = 5: p·m/rank 0.025, 0.025, 0.05, 0.05, 0.5."""
    q = benjamini_hochberg([0.5, 0.01, np.nan, 0.04, 0.03, 0.005])
    assert q == pytest.approx([0.5, 0.025, np.nan, 0.05, 0.05, 0.025], nan_ok=True)
    assert np.isnan(benjamini_hochberg([np.nan])).all() and benjamini_hochberg([]).shape == (0,)


def test_holm_by_hand() -> None:
    """0.01·4, then max(0.02·3, …), max(0.03·2, …), 0.9."""
    assert holm([0.03, 0.9, np.nan, 0.01, 0.02]) == pytest.approx([0.06, 0.9, np.nan, 0.04, 0.06], nan_ok=True)
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0] and holm([]).shape == (0,)
