"""What a choice kept of a change, as a share of all of it, with an interval that knows that the change was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tv.stats.means import Floats, mean_interval


class Share(NamedTuple):
    """A share, 1 for all of the change, with its interval; the ends are NaN where there is none."""

    value: float
    lo: float
    hi: float


def share(part: Floats, whole: Floats, clusters: Sequence[str], level: float = 0.95) -> Share:
    """Mean part ÷ mean whole over the same prompts.

    Source: Ratio estimates by linearisation; W. G. Cochran (1977), Sampling Techniques, chapter 6.
    """
    total = float(whole.mean())
    ratio = float(part.mean()) / total
    apart = (part - ratio * whole) / total
    if float(np.abs(apart).max()) <= 1e-9:
        return Share(ratio, ratio, ratio)
    found = mean_interval(apart, clusters, level)
    return Share(ratio, ratio + float(found.lo), ratio + float(found.hi))


def difference(first: Floats, second: Floats, whole: Floats, clusters: Sequence[str]) -> tuple[Share, float]:
    """The first's share minus the second's, over the same prompts, and p of no difference."""
    gap = (first - second) / float(whole.mean())
    gap = np.where(np.abs(gap) < 1e-9, 0.0, gap)
    found = mean_interval(gap, clusters)
    return Share(float(found.mean), float(found.lo), float(found.hi)), float(found.p)


def over_domains(
    parts: Sequence[Floats], wholes: Sequence[Floats], clusters: Sequence[Sequence[str]]
) -> tuple[Share, float]:
    """The mean over domains of mean part ÷ mean whole, with its interval and p of 0: each domain a stratum.

    What changes from domain to domain is no uncertainty, so that each value is taken beside its own domain's mean.
    """
    means = [float(part.mean() / whole.mean()) for part, whole in zip(parts, wholes, strict=True)]
    n = sum(map(len, parts))
    scaled = []
    for part, whole, mean in zip(parts, wholes, means, strict=True):
        apart = part / float(whole.mean()) - mean
        scaled.append(apart * n / (len(parts) * len(part)))
    overall = float(np.mean(means))
    names = [f"{i} {name}" for i, own in enumerate(clusters) for name in own]
    found = mean_interval(np.concatenate(scaled) + overall, names)
    return Share(overall, float(found.lo), float(found.hi)), float(found.p)
