"""The metric of many variants on the same prompts: stacked where that is proved to be the same, else one by one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from probes.attribution.forwards import Floats, Model, Variant, swapped, values, values_under
from probes.attribution.known import Known
from probes.attribution.metric import Metric
from probes.attribution.packing import Pack, packs, sheet
from probes.attribution.stacked import Row, at_once, values_of_variants
from probes.attribution.swaps import Swaps
from probes.attribution.units import components
from probes.capture.pair import Pair
from tv.checkpoints.streamed import is_streamed
from tv.errors import first_line
from tv.prompts.encoding import Batch, Encoded, batches

if TYPE_CHECKING:
    from probes.attribution.work import Work

#: The prompts of one pack, or of one batch, by id.
Prompts = tuple[str, ...]
#: What variants give, by variant: (prompts,).
Found = Mapping[Variant, Floats]
#: How far a value read in a pack may be from the same value read in a padded batch, as a share of the largest.
NEAR = 1e-4
#: Prompts on which it is proved that variants can be stacked: short and long ones, in two packs.
PROVED = 8
#: Packs go side by side while one has no more tokens than this, and no more products: of a small model all do.
_SIDE_BY_SIDE, _PRODUCTS = 2048, 2**33


@dataclass(frozen=True)
class Stacked:
    """A task: variants of one model, read together on each of these packs."""

    variants: tuple[Variant, ...]
    packs: tuple[Prompts, ...]

    def __call__(self, work: Work) -> Found:
        return work.reading.stacked_values(self.variants, self.packs)

    @property
    def prompts(self) -> Prompts:
        """All of them, in order."""
        return tuple(prompt for pack in self.packs for prompt in pack)

    @property
    def size(self) -> int:
        """Variants on batches of prompts."""
        return len(self.variants) * len(self.packs)

    def __str__(self) -> str:
        return f"{len(self.variants)} variants of {self.variants[0].model} from prompt {self.prompts[0]!r} on"


@dataclass(frozen=True)
class Padded:
    """A task: one variant on one batch."""

    variant: Variant
    prompts: Prompts
    size: int = 1

    def __call__(self, work: Work) -> Found:
        return {self.variant: work.reading.padded_value(self.variant, self.prompts)}

    def __str__(self) -> str:
        return f"a variant of {self.variant.model} from prompt {self.prompts[0]!r} on"


@dataclass(frozen=True)
class Swept:
    """A task: one variant on all batches, which go through each layer together."""

    variant: Variant
    batches: tuple[Prompts, ...]

    def __call__(self, work: Work) -> Found:
        return {self.variant: work.reading.swept_value(self.variant, self.batches)}

    @property
    def prompts(self) -> Prompts:
        """All of them, in order."""
        return tuple(prompt for batch in self.batches for prompt in batch)

    @property
    def size(self) -> int:
        """Batches of prompts."""
        return len(self.batches)

    def __str__(self) -> str:
        return f"a variant of {self.variant.model} on all prompts"


#: Does tasks, here or elsewhere, and gives each with its result as it is finished.
Each = Callable[[Sequence[Any]], Iterator[tuple[Any, Any]]]


class Reading:
    """One pair, metric and prompts, to be read under variants of either model.

    The prompts in `earlier`, of a run that others were added to, are in no pack with these.
    """

    def __init__(
        self,
        pair: Pair,
        metric: Metric,
        encoded: Sequence[Encoded],
        batches: Sequence[Batch],
        swaps: Swaps,
        earlier: frozenset[str] = frozenset(),
    ) -> None:
        self._pair, self._metric, self._batches, self._swaps = pair, metric, batches, swaps
        self._encoded, self._earlier = {item.prompt.id: item for item in encoded}, earlier
        self._made: dict[Prompts, Pack] = {}
        self._rows: dict[tuple[Model, tuple[Prompts, ...]], Row] = {}
        self._plain: tuple[Any, dict[int, Any]] = (None, {})  # block outputs of a model on the last batch
        self._proofs: dict[Model, bool] = {}
        self._looked: dict[Model, Row] = {}  # whose blocks were run, to see what they are given

    def on(self, encoded: Sequence[Encoded], batches: Sequence[Batch]) -> Reading:
        """The same on other prompts; what is proved of the models is so there too."""
        other = Reading(self._pair, self._metric, encoded, batches, self._swaps, self._earlier)
        other._proofs, other._looked = self._proofs, self._looked
        return other

    def of(self, variants: Sequence[Variant], known: Known, each: Each) -> Iterator[tuple[Prompts, Found, int, int]]:
        """Values of variants of one model as they are computed, none that is known.

        Yields prompts, their values by variant, and how much is done and will be, in variants on batches of prompts.
        """
        if not variants:
            return
        together = self.stacked(variants[0].model)
        stackable = [one for one in variants if together and self._swaps.levels(one) is not None]
        others = [one for one in variants if one not in stackable]
        steps = list(self._steps(stackable, others))
        missing = [step for step in (_left(step, known) for step in steps) if step is not None]
        total = sum(step.size for step in steps)
        done = total - sum(step.size for step in missing)
        try:
            for task, found in each(missing):
                done += task.size
                yield task.prompts, found, done, total
        finally:
            self._plain = (None, {})

    def _steps(self, stackable: Sequence[Variant], others: Sequence[Variant]) -> Iterator[Stacked | Padded | Swept]:
        """A control is drawn anew each time, so it is read on everything at once, or on batch after batch.

        Of streamed models everything is read at once: as many variants as go through together, on all prompts.
        """
        padded = [tuple(item.prompt.id for item in batch.encoded) for batch in self._batches]
        if is_streamed(self._pair.base):
            for packs in self._old_and_new() if stackable else ():
                n = at_once(self._pair.base, sum(self._made[pack].ids.numel() for pack in packs))
                yield from (Stacked(tuple(stackable[i : i + n]), packs) for i in range(0, len(stackable), n))
            yield from (Swept(one, tuple(padded)) for one in others)
            return
        units = tuple(one for one in stackable if not one.control)
        if units:
            yield from (Stacked(units, some) for some in self._side_by_side(self._packs))
        yield from (Stacked((one,), self._packs) for one in stackable if one.control)
        yield from (Padded(one, prompts) for prompts in padded for one in others if not one.control)
        yield from (Padded(one, prompts) for one in others if one.control for prompts in padded)

    def stacked_values(self, variants: Sequence[Variant], packs: Sequence[Prompts]) -> Found:
        """Values of variants of one model on packs of prompts."""
        model: Model = variants[0].model
        levels = [self._swaps.levels(variant) or {} for variant in variants]
        rows = [self._row(model, some) for some in self._side_by_side(packs)]
        found = values_of_variants(self._model(model), rows, levels, self._swaps.at, self._metric)
        return dict(zip(variants, found, strict=True))

    def padded_value(self, variant: Variant, prompts: Prompts) -> Floats:
        """Values of one variant on one batch of prompts."""
        key = (variant.model, prompts)
        if self._plain[0] != key:
            self._plain = (key, {})
        model, swap = self._model(variant.model), self._swaps.of(variant)
        items = [self._encoded[prompt] for prompt in prompts]
        (batch,) = batches(items, len(items), self._pair.pad_id)
        (found,) = values_under(model, self._pair.architecture, [swap], batch, self._metric, self._plain[1])
        return found

    def swept_value(self, variant: Variant, several: Sequence[Prompts]) -> Floats:
        """Values of one variant on batches of prompts, which reach a layer together before one goes on."""
        model, found = self._model(variant.model), [[self._encoded[prompt] for prompt in each] for each in several]
        padded = [batch for items in found for batch in batches(items, len(items), self._pair.pad_id)]
        with swapped(model, self._swaps.of(variant)):
            return values(model, padded, self._metric)

    def _model(self, name: Model) -> PreTrainedModel:
        return self._pair.base if name == "base" else self._pair.tuned

    @cached_property
    def _packs(self) -> tuple[Prompts, ...]:
        encoded = self._encoded.values()
        groups = ([item for item in encoded if (item.prompt.id in self._earlier) == old] for old in (True, False))
        made = [pack for group in groups if group for pack in packs(group, self._metric.reads)]
        named = {tuple(item.prompt.id for item in pack.encoded): pack for pack in made}
        self._made |= named
        return tuple(named)

    def _old_and_new(self) -> list[tuple[Prompts, ...]]:
        """The packs of a run that others were added to, and the others."""
        sides = (tuple(pack for pack in self._packs if (pack[0] in self._earlier) == old) for old in (True, False))
        return [side for side in sides if side]

    def _side_by_side(self, packs: Sequence[Prompts]) -> list[tuple[Prompts, ...]]:
        """Packs in sheets, in order; those of a run that others were added to are in none with the others."""
        weights = sum(value.numel() for value in self._pair.base.parameters())
        most = min(_SIDE_BY_SIDE, _PRODUCTS // weights)
        found: list[list[Prompts]] = []
        width, old = 0, False
        for prompts in packs:
            size, known = self._pack(prompts).ids.shape[1], prompts[0] in self._earlier
            width = max(width, size)
            if found and known == old and width * (len(found[-1]) + 1) <= most:
                found[-1].append(prompts)
            else:
                found.append([prompts])
                width, old = size, known
        return [tuple(several) for several in found]

    def _pack(self, prompts: Prompts) -> Pack:
        if prompts not in self._made:  # named by another process
            items = [self._encoded[prompt] for prompt in prompts]
            (self._made[prompts],) = packs(items, self._metric.reads, sys.maxsize)
        return self._made[prompts]

    def _row(self, name: Model, several: tuple[Prompts, ...]) -> Row:
        if (name, several) not in self._rows:
            made = sheet([self._pack(prompts) for prompts in several])
            with torch.inference_mode():
                model, architecture = self._model(name), self._pair.architecture
                row = Row(model, architecture, made, self._looked.get(name), self._metric.last)
            self._looked.setdefault(name, row)
            self._rows[name, several] = row
        return self._rows[name, several]

    def stacked(self, name: Model) -> bool:
        """Whether stacked values are those of padded batches: of the model as it is, and with all units moved."""
        if name not in self._proofs:
            self._proofs[name] = self._proved(name)
        return self._proofs[name]

    def _proved(self, name: Model) -> bool:
        """On a few prompts in two packs: as it is, with what comes first moved, and with everything moved."""
        model, architecture = self._model(name), self._pair.architecture
        if not architecture.chained or model.dtype != torch.float32:  # else rounding hides a wrong mask
            return False
        units = tuple(
            unit for unit in components(architecture) if self._swaps.levels(Variant(name, (unit,))) is not None
        )
        moved = [Variant(name), Variant(name, units[:1]), Variant(name, units)]
        few = _spread(sorted(self._encoded.values(), key=lambda item: len(item.ids)))
        halves = [half for half in (few[::2], few[1::2]) if half]
        try:
            rows = sheet([pack for half in halves for pack in packs(half, self._metric.reads, sys.maxsize)])
            with torch.inference_mode():
                self._looked[name] = row = Row(model, architecture, rows, last=self._metric.last)
            levels = [self._swaps.levels(variant) or {} for variant in moved]
            found = values_of_variants(model, [row], levels, self._swaps.at, self._metric)
        except Exception as error:  # a model that takes no mask, no positions, or no block alone may raise anything
            logging.getLogger(__name__).info("variants of %s are read one by one: %s", name, first_line(error))
            return False
        packed = [item for pack in rows.packs for item in pack.encoded]
        whole, wanted = replace(self._metric, last=()), []
        for variant in moved:
            with swapped(model, self._swaps.of(variant)):
                wanted.append(values(model, batches(packed, len(packed), self._pair.pad_id), whole))
        order = [item.prompt.id for item in packed]
        padded = [item.prompt.id for batch in batches(packed, len(packed), self._pair.pad_id) for item in batch.encoded]
        there = found[:, [order.index(prompt) for prompt in padded]]
        return bool(np.allclose(there, wanted, rtol=NEAR, atol=NEAR * _largest(wanted), equal_nan=True))


def _spread(items: Sequence[Encoded]) -> list[Encoded]:
    """At most `PROVED` of them, evenly from the first to the last."""
    at = np.unique(np.linspace(0, len(items) - 1, min(PROVED, len(items))).round().astype(int))
    return [items[i] for i in at.tolist()]


def _left(step: Stacked | Padded | Swept, known: Known) -> Stacked | Padded | Swept | None:
    """What of a step is not known."""
    if not isinstance(step, Stacked):
        return None if known.has(step.variant, step.prompts) else step
    missing = tuple(one for one in step.variants if not known.has(one, step.prompts))
    return replace(step, variants=missing) if missing else None


def _largest(values: Sequence[Floats]) -> float:
    return max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
