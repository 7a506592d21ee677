"""The smallest change of behaviour that a suite's prompts can show, told before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from probes.reporting.words import listing, number, percent, points, too_few
from tv.prompts.files import Prompt
from tv.stats.means import FEW_CLUSTERS, FEWEST, detectable
from tv.stats.proportions import detectable_change

#: The share of answers that turn, from right to wrong or back: what can be seen of exact match depends on it.
TURNED = 0.2


def smallest_changes(prompts: Sequence[Prompt]) -> list[str]:
    """What the prompts of each domain can show, a line for as many units; nothing where none has a target.

    Units are clusters of prompts, or prompts that have none. Four of five times such a change has p < 0.05 by itself;
    corrected for a family of changes it must be larger.
    """
    units: dict[str, set[str]] = {}
    for prompt in prompts:
        if prompt.target is not None:
            units.setdefault(prompt.domain, set()).add(prompt.cluster or prompt.id)
    by_count: dict[int, list[str]] = {}
    for domain, names in units.items():
        by_count.setdefault(len(names), []).append(domain)
    none = {n: domains for n, domains in by_count.items() if n < FEWEST}
    lines = [_line(n, domains) for n, domains in by_count.items() if n >= FEWEST]
    if none:
        named = [(domain, n) for n, domains in none.items() for domain in domains]
        lines.append(too_few(*zip(*named, strict=True)))
    return lines


def _line(n: int, domains: Sequence[str]) -> str:
    rough = f"; fewer than {FEW_CLUSTERS} prompts or clusters make rough intervals" if n < FEW_CLUSTERS else ""
    return (
        f"{listing(list(domains))}, {n} prompts or clusters{' each' if len(domains) > 1 else ''}: the smallest change "
        f"that shows (power 80 %, uncorrected) is {number(detectable(n), 2)} standard deviations across them, and "
        f"{points(detectable_change(n, TURNED)).removeprefix('+')} of exact match if {percent(TURNED)} of the answers "
        f"turn{rough}"
    )
