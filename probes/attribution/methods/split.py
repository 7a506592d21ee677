"""Does the behaviour sit in old directions or in new ones? T grafted only inside W's subspace, or only outside.

Π_k spans the leading left singular vectors of the pretrained matrix (k at ε = 0.05, as in the ledger and in SSA). Each
part is compared with a random step of the same norm in the same subspace, because any larger part moves more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from probes.attribution.effects import FORWARD, Effects
from probes.attribution.forwards import Part, Variant
from probes.attribution.subspaces import groups_of
from probes.attribution.units import Unit
from probes.attribution.work import Work
from probes.capture.runner import with_bases

_INSIDE: Part = "inside"
_OUTSIDE: Part = "outside"
#: Inside the subspace or outside; T, or a control in its place.
PARTS = [(part, control) for part in (_INSIDE, _OUTSIDE) for control in ("", "random")]


def split(work: Work, units: Sequence[Unit]) -> Iterator[Effects]:
    """M(θ_pre + part of T) − M(θ_pre): methods `inside`, `outside`, each also with the control `random`.

    Its units are all matrices of the blocks at once, all of one name (granularity "type"), and each of them where
    effects by module are requested.

    Args:
        work: The pair, the prompts and the metric.
        units: None; the method makes them.
    """
    groups = groups_of(with_bases(work.pair.architecture), "module" in work.granularity)
    variants = [Variant("base", (unit,), control, part=part) for part, control in PARTS for unit in groups]
    start, values = work.under(variants)
    for i, (part, control) in enumerate(PARTS):
        effects = values[i * len(groups) : (i + 1) * len(groups)] - start
        yield Effects(part, FORWARD, tuple(groups), work.prompts, effects, control)
