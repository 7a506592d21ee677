"""Checks that moving weights and outputs works: both endpoints, and a patch that changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from probes.attribution.checks import Check
from probes.attribution.forwards import Variant
from probes.attribution.methods.patch import patched_with_itself
from probes.attribution.reading import PROVED
from probes.attribution.units import components
from probes.attribution.work import Work
from probes.attribution.written import is_written
from probes.store.schemas import ALL_DOMAINS

#: How far apart values of the metric that must be equal may be.
EXACT = 1e-5


def endpoints(work: Work) -> list[Check]:
    """Grafting all components gives the tuned model, reverting all the base; self-patching changes nothing."""
    units = components(work.pair.architecture)
    base, all_grafted = work.under([Variant("base", tuple(units))])
    tuned, all_reverted = work.under([Variant("tuned", tuple(units))])
    checks = []
    for method, moved, wanted in (("graft", all_grafted[0], tuned), ("revert", all_reverted[0], base)):
        off = float(np.nanmax(np.abs(moved - wanted), initial=0.0))
        checks.append(Check("endpoint", method, ALL_DOMAINS, off, EXACT))
    first = next(unit for unit in units if unit.layer >= 0 and is_written(unit, work.pair.architecture))
    off = patched_with_itself(replace(work, batches=[work.batch(work.prompts[:PROVED])]), first)
    return [*checks, Check("no_op", "patch", ALL_DOMAINS, off, EXACT)]
