"""What the prompts of a suite can show, told before anything runs."""

import math

import numpy as np
import pytest

from probes.reporting.power import TURNED, smallest_changes
from tv.prompts.files import Prompt
from tv.stats.means import detectable, mean_interval
from tv.stats.proportions import detectable_change, mcnemar_p


def prompts(domain: str, n: int, clusters: int = 0, target: str | None = " a") -> list[Prompt]:
    return [
        Prompt(f"{domain}{i}", "s", domain, "text", target, cluster=f"c{i % clusters}" if clusters else None)
        for i in range(n)
    ]


def test_domains_of_as_many_prompts_or_clusters_share_a_line() -> None:
    lines = smallest_changes(
        [*prompts("medical", 48), *prompts("math", 60, clusters=12), *prompts("law", 48), *prompts("art", 5)]
    )
    shows = "the smallest change that shows (power 80 %, uncorrected) is"
    turn = "of exact match if 20 % of the answers turn"
    assert lines == [
        f"medical and law, 48 prompts or clusters each: {shows} 0.42 standard deviations across them, and 17.9 pp "
        f"{turn}",
        f"math, 12 prompts or clusters: {shows} 1.0 standard deviations across them, and 57.8 pp {turn}; fewer than "
        "20 prompts or clusters make rough intervals",
        "too few prompts or clusters for an interval, which needs 8: art (5)",
    ]
    assert smallest_changes(prompts("texts", 30, target=None)) == []


@pytest.mark.parametrize("n", [8, 24, 48])
def test_what_is_told_is_what_shows(n: int) -> None:
    """Four of five times."""
    rng = np.random.default_rng(n)
    shown = [float(mean_interval(rng.normal(detectable(n), 1, n)).p) < 0.05 for _ in range(120)]
    assert 0.7 < np.mean(shown) < 0.9
    change = detectable_change(n, TURNED)
    gained = (max(TURNED, change) + change) / 2
    turns = rng.choice([1, -1, 0], (120, n), p=[gained, gained - change, 1 - 2 * gained + change])
    told = [mcnemar_p(turn < 0, turn > 0) < 0.05 for turn in turns]
    assert 0.7 < np.mean(told) < 0.9


def test_too_few_prompts_show_nothing() -> None:
    assert math.isnan(detectable(7)) and math.isnan(detectable_change(7, 0.2))
