"""Nodes go where the integrand bends; all are used, and no more are taken than help."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from probes.attribution.quadrature import OWN, Integral, by_interval, gauss_legendre, wanted


def _integrate(metric: Callable[[float], float], allowed: float, **more: float) -> tuple[float, Integral]:
    """The integral of a metric's slope by central differences, and how it was taken."""
    own = Integral(metric(0), metric(1), **{"nodes": 4, "most": 64, **more})  # type: ignore[arg-type]
    _integrate_together([metric], [own], allowed)
    return _sum(own), own


def _integrate_together(
    metrics: Sequence[Callable[[float], float]], several: Sequence[Integral], allowed: float
) -> None:
    while any(places := wanted(several, allowed)):
        for metric, own, at in zip(metrics, several, places, strict=True):
            for alpha in at:
                assert 0 < alpha < 1 and alpha not in own.known
                own.known[alpha] = metric(alpha), (metric(alpha + 1e-6) - metric(alpha - 1e-6)) / 2e-6


def _sum(own: Integral) -> float:
    return sum(weight * own.known[alpha][1] for alpha, weight in own.weights().items())


def test_it_begins_with_gauss_legendre() -> None:
    for n in (1, 2, 4, 7):
        at, weights = gauss_legendre(n)
        assert np.allclose(by_interval(at, n - 1).sum(0), weights, atol=1e-14)
        assert np.allclose(by_interval(at, n - 1) @ at**0, np.diff([0, *at, 1]))
    found, own = _integrate(lambda a: a**8 - 3 * a**2, 0.5)  # a slope of degree 7: exact with 4 nodes
    assert found == pytest.approx(-2, abs=1e-6)
    assert len(own.known) == 4


def test_the_spline_integrates_cubics_on_any_nodes() -> None:
    at = np.array([0.07, 0.1, 0.31, 0.36, 0.8, 0.93])
    edges = np.array([0, *at, 1])
    for power in range(4):
        got = by_interval(at, 3) @ at**power
        assert np.allclose(got, np.diff(edges ** (power + 1)) / (power + 1), atol=1e-12)


@pytest.mark.parametrize(("place", "width"), [(0.2, 0.02), (0.5, 0.05), (0.83, 0.01)])
def test_a_bend_gets_the_nodes(place: float, width: float) -> None:
    found, own = _integrate(lambda a: a + np.tanh((a - place) / width), 0.01)
    assert abs(found - (own.end - own.start)) <= 0.01
    added = sorted(set(own.known) - set(gauss_legendre(4)[0].tolist()))
    near = [alpha for alpha in added if abs(alpha - place) < max(8 * width, 0.15)]
    assert len(near) > len(added) / 2
    assert len(own.known) < 40  # Gauss–Legendre needs 1/width


def test_a_jump_is_given_up() -> None:
    found, own = _integrate(lambda a: 0.5 * a + 3.0 * (a > 0.4321), 0.01)
    assert len(own.known) <= 4 + 8
    assert abs(found - 0.5) < abs(found - 3.5)  # the jump is no part of the integral


def test_no_more_than_the_most_and_nothing_within_the_floor() -> None:
    bend = lambda a: np.tanh((a - 0.4) / 0.02)  # noqa: E731
    assert len(_integrate(bend, 1e-6, most=9)[1].known) == 9
    assert len(_integrate(bend, np.inf)[1].known) == 4
    noise = lambda a: 1e-3 * np.sin(1e4 * a)  # noqa: E731
    own = Integral(0.0, 0.0, 4, 64, floor=0.05)
    for alpha in wanted([own], 1e-4)[0]:
        own.known[alpha] = noise(alpha), 0.0
    assert wanted([own], 1e-4) == [()]


def test_what_is_no_number_ends_it() -> None:
    """Alone, and beside others, which go on."""
    bend = lambda a: np.tanh((a - 0.4) / 0.02)  # noqa: E731
    own, other = Integral(0.0, 1.0, 4, 64), Integral(bend(0), bend(1), 4, 64)
    _integrate_together([lambda _: np.nan, bend], [own, other], 0.01)
    assert len(own.known) == 4 and len(other.known) > 4
    assert other.missed() <= OWN * 0.01 and own.missed() == np.inf


def test_those_that_miss_most_get_nodes_until_all_together_miss_little_enough() -> None:
    """Two bends among straight lines: what lines leave of the sum is the bends', but no more than a bound for each."""
    bends = [lambda a, w=w: a + np.tanh((a - 0.45) / w) for w in (0.04, 0.15)]
    metrics = [*bends, *[lambda a: 2 * a] * 18]
    for allowed in (0.003, 0.03):
        several = [Integral(metric(0), metric(1), 4, 64) for metric in metrics]
        _integrate_together(metrics, several, allowed)
        assert all(len(own.known) == 4 for own in several[2:])
        missed = [abs(_sum(own) - (own.end - own.start)) for own in several]
        assert sum(own.missed() for own in several) <= allowed * len(several)
        assert sum(missed) <= allowed * len(several) and max(missed) <= OWN * allowed
        alone = [len(_integrate(metric, allowed)[1].known) for metric in bends]
        assert sum(len(own.known) for own in several[:2]) < sum(alone)
