"""Split, as suites and command lines know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from probes.methods import Cost, attribution_method

if TYPE_CHECKING:
    from probes.attribution.effects import Effects
    from probes.attribution.units import Unit
    from probes.attribution.work import Work
    from tv.architecture.anatomy import Architecture


def _cost(architecture: Architecture, _units: Sequence[Unit], settings: Any) -> Cost:
    """The base as it is, and with each part of every group of matrices."""
    from probes.attribution.methods.split import PARTS
    from probes.attribution.subspaces import groups_of
    from probes.capture.runner import with_bases

    return Cost(1 + len(PARTS) * len(groups_of(with_bases(architecture), "module" in settings.granularity)))


@attribution_method(
    "split",
    words="split effect",
    explains="Split: graft only the part of T inside, or outside, the pretrained matrix's own subspace.",
    labels={"inside": "T inside W's own subspace", "outside": "T outside W's own subspace"},
    order=40,
    cost=_cost,
)
def split(work: Work, units: Sequence[Unit]) -> Iterator[Effects]:
    """See `probes.attribution.methods.split.split`."""
    from probes.attribution.methods.split import split

    return split(work, units)
