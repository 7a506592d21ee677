"""The checks that come with an attribution: what must hold if its numbers are right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.effects import floor_of
from probes.attribution.shares import PathEffects, gap_of
from probes.capture.pair import Pair
from probes.store.schemas import ALL_DOMAINS
from tv.checkpoints.streamed import is_streamed, stored_values

#: Entries of a parameter that are summed at once.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class Check:
    """One check: `value` should not be above `bound`."""

    check: str
    method: str
    domain: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether it is not above; NaN does not hold."""
        return bool(self.value <= self.bound)

    def row(self, metric: str) -> dict[str, object]:
        """As a row of the table."""
        return {**vars(self), "holds": self.holds, "metric": metric}


def completeness(
    integrated: PathEffects, domains: Mapping[str, str], tolerance: float, floors: Mapping[str, float] | None = None
) -> list[Check]:
    """The gap of `path` over all prompts and by domain; no check where there is no change to share out."""
    checks, still = [], integrated.unchanged(domains, floors or {})
    for domain in (ALL_DOMAINS, *sorted(set(domains[name] for name in integrated.prompts))):
        if domain in still:
            continue
        which = [i for i, name in enumerate(integrated.prompts) if domain in (ALL_DOMAINS, domains[name])]
        gap = gap_of([integrated.shares[i] for i in which], integrated.change[which], floor_of(floors, domain))
        checks.append(Check("completeness", "path", domain, gap, tolerance))
    return checks


class Untouched:
    """Checksums of both models' weights before and after: every moved weight must be back bit for bit."""

    def __init__(self, pair: Pair) -> None:
        self._sums: Callable[[], list[int]] = lambda: [s for model in (pair.base, pair.tuned) for s in _sums(model)]
        self._before = self._sums()

    def check(self) -> Check:
        """The number of parameters that differ from before."""
        changed = sum(a != b for a, b in zip(self._before, self._sums(), strict=True))
        return Check("weights_restored", "", ALL_DOMAINS, float(changed), 0.0)


def _sums(model: PreTrainedModel) -> list[int]:
    """One checksum per parameter: its bits as integers, summed with weights by position."""
    values, sums = stored_values(model), []
    names = [name for name, value in model.named_parameters() if is_streamed(model) or not value.is_meta]
    for name in names:
        value = values[name].detach().contiguous()
        size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
        bits = value.view(size).flatten().split(_AT_ONCE)
        sums.append(sum(_sum(some, i * _AT_ONCE) for i, some in enumerate(bits)))
    return sums


def _sum(bits: Tensor, start: int) -> int:
    place = torch.arange(start, start + len(bits), device=bits.device) % 65521 + 1
    return int((bits * place).sum())
