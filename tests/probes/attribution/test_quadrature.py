"""Nodes go where the integrand bends; all are used, and no more are taken than help."""

from collections.abc import Callable

import numpy as np
import pytest

from probes.attribution.quadrature import Integral, by_interval, gauss_legendre


def _integrate(metric: Callable[[float], float], allowed: float, **more: float) -> tuple[float, Integral]:
    """The integral of a metric's slope by central differences, and how it was taken."""
    own = Integral(metric(0), metric(1), **{"nodes": 4, "most": 64, "allowed": allowed, **more})  # type: ignore[arg-type]
    while wanted := own.wanted():
        for alpha in wanted:
            assert 0 < alpha < 1 and alpha not in own.known
            own.known[alpha] = metric(alpha), (metric(alpha + 1e-6) - metric(alpha - 1e-6)) / 2e-6
    weights = own.weights()
    return sum(weights[alpha] * slope for alpha, (_, slope) in own.known.items()), own


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
    own = Integral(0.0, 0.0, 4, 64, 1e-4, floor=0.05)
    for alpha in own.wanted():
        own.known[alpha] = noise(alpha), 0.0
    assert own.wanted() == ()


def test_what_is_no_number_ends_it() -> None:
    own = Integral(0.0, 1.0, 4, 64, 0.01)
    for alpha in own.wanted():
        own.known[alpha] = np.nan, 1.0
    assert own.wanted() == ()
