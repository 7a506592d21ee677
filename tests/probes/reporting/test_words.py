"""Numbers as people read them keep their order."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from probes.reporting.words import estimate, number, percent, points, signed


@pytest.mark.parametrize("form", [number, signed, percent, points])
def test_rounding_never_puts_an_estimate_outside_its_own_interval(form: Callable[[float | None], str]) -> None:
    generator = np.random.default_rng(0)
    for scale in (1e-6, 0.004, 0.1, 1.0, 12.0, 9990.0):
        for sign in (-1, 1):
            for lo, value, hi in np.sort(sign * scale * generator.normal(1, 0.02, (100, 3)), axis=1):
                text = estimate(value, lo, hi, form).replace("< ", "").replace("−", "-")
                shown, low, high = map(float, re.findall(r"[-+]?[\d.]+(?:e[-+]\d+)?", text))
                assert low <= shown <= high, text


def test_an_estimate_without_an_interval_stands_alone() -> None:
    assert estimate(-0.486, -0.486, -0.486, signed) == "−0.486 [−0.486, −0.486]"
    assert estimate(1.0, float("nan"), float("nan")) == "1.00"
