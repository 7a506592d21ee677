"""A small seeded calibration: intervals cover, and reports on nothing claim nothing more often than they may."""

import pytest

from benchmarks.calibration import COVERED, WRONG, Rate, claims, coverage, table


def test_shown_intervals_cover() -> None:
    rates = list(coverage(draws=400))
    assert len(rates) >= 5 * 8 + 3 and all(rate.of > 0 for rate in rates)
    assert [(rate.what, rate.where, rate.rate) for rate in rates if not rate.holds] == []


@pytest.mark.thorough
def test_reports_on_nothing_rarely_claim_anything() -> None:
    rates = {rate.what: rate for rate in claims(reports=10)}
    assert len(rates) == 6 and [rate.what for rate in rates.values() if not rate.holds] == []


@pytest.mark.parametrize(
    ("rate", "holds"),
    [
        (Rate("w", "w", 0.80, 400, COVERED, at_least=True), False),
        (Rate("w", "w", 0.92, 400, COVERED, at_least=True), True),
        (Rate("w", "w", 0.12, 200, WRONG), False),
        (Rate("w", "w", 0.07, 200, WRONG), True),
    ],
)
def test_a_bound_is_missed_beyond_chance(rate: Rate, holds: bool) -> None:
    assert rate.holds == holds
    assert ("(!)" in table([rate])) == (not holds)
