"""The metric of many variants on the same prompts: stacked where that is proved to be the same, else one by one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel

from probes.attribution.forwards import Floats, Model, Variant, swapped, values, values_under
from probes.attribution.known import Known
from probes.attribution.metric import Metric
from probes.attribution.packing import Pack, packs
from probes.attribution.stacked import Row, values_of_variants
from probes.attribution.swaps import Swaps
from probes.attribution.units import components
from probes.capture.pair import Pair
from tv.errors import first_line
from tv.prompts.encoding import Batch, Encoded

#: How far a value read in a pack may be from the same value read in a padded batch, as a share of the largest.
NEAR = 1e-4


class Reading:
    """One pair, metric and prompts, to be read under variants of either model."""

    def __init__(
        self, pair: Pair, metric: Metric, encoded: Sequence[Encoded], batches: Sequence[Batch], swaps: Swaps
    ) -> None:
        self._pair, self._metric, self._batches, self._swaps = pair, metric, batches, swaps
        self._encoded = encoded
        self._rows: dict[tuple[Model, int], Row] = {}
        self._proofs: dict[Model, bool] = {}

    def on(self, encoded: Sequence[Encoded], batches: Sequence[Batch]) -> Reading:
        """The same on other prompts; what is proved of the models is so there too."""
        other = Reading(self._pair, self._metric, encoded, batches, self._swaps)
        other._proofs = self._proofs
        return other

    def of(
        self, variants: Sequence[Variant], known: Known
    ) -> Iterator[tuple[tuple[str, ...], Mapping[Variant, Floats], int, int]]:
        """Values of variants of one model as they are computed, none that is known.

        Yields prompts, their values by variant, and how much is done and will be, in variants on batches of prompts.
        """
        if not variants:
            return
        together = self.stacked(variants[0].model)
        stackable = [each for each in variants if together and self._swaps.levels(each) is not None]
        others = [each for each in variants if each not in stackable]
        controls = [each for each in stackable if each.control]  # drawn anew each time, so read on all packs at once
        units = [each for each in stackable if not each.control]
        steps = [(units, [i]) for i in range(len(self._packs))] if units else []
        steps += [([each], list(range(len(self._packs)))) for each in controls]
        total, done = sum(len(some) * len(which) for some, which in steps) + len(others) * len(self._batches), 0
        for some, which in steps:
            prompts = tuple(item.prompt.id for i in which for item in self._packs[i].encoded)
            missing = [each for each in some if not known.has(each, prompts)]
            done += len(some) * len(which)
            yield prompts, self._read(missing, which) if missing else {}, done, total
        for several in ([each for each in others if not each.control], *([each] for each in others if each.control)):
            for batch in self._batches if several else ():
                prompts = tuple(item.prompt.id for item in batch.encoded)
                missing = [each for each in several if not known.has(each, prompts)]
                done += len(several) - len(missing)
                for variant, found in self._one_by_one(missing, batch):
                    done += 1
                    yield prompts, {variant: found}, done, total

    def _read(self, variants: Sequence[Variant], which: Sequence[int]) -> dict[Variant, Floats]:
        model: Model = variants[0].model
        levels = [self._swaps.levels(variant) or {} for variant in variants]
        rows = [self._row(model, i) for i in which]
        found = values_of_variants(self._model(model), rows, levels, self._swaps.at, self._metric)
        return dict(zip(variants, found, strict=True))

    def _one_by_one(self, variants: Sequence[Variant], batch: Batch) -> Iterator[tuple[Variant, Floats]]:
        if variants:
            model, architecture = self._model(variants[0].model), self._pair.architecture
            swaps = [self._swaps.of(variant) for variant in variants]
            yield from zip(variants, values_under(model, architecture, swaps, batch, self._metric), strict=True)

    def _model(self, name: Model) -> PreTrainedModel:
        return self._pair.base if name == "base" else self._pair.tuned

    @cached_property
    def _packs(self) -> list[Pack]:
        return packs(self._encoded, self._metric.reads)

    def _row(self, name: Model, i: int) -> Row:
        if (name, i) not in self._rows:
            with torch.inference_mode():
                self._rows[name, i] = Row(self._model(name), self._pair.architecture, self._packs[i])
        return self._rows[name, i]

    def stacked(self, name: Model) -> bool:
        """Whether stacked values are those of padded batches: of the model as it is, and with all units moved."""
        if name not in self._proofs:
            self._proofs[name] = self._proved(name)
        return self._proofs[name]

    def _proved(self, name: Model) -> bool:
        model, architecture = self._model(name), self._pair.architecture
        if not architecture.chained or model.dtype != torch.float32:  # else rounding hides a wrong mask
            return False
        each = [Variant(name, (unit,)) for unit in components(architecture)]
        units = tuple(one.units[0] for one in each if self._swaps.levels(one) is not None)
        moved = Variant(name, units)
        try:
            found = self._read([Variant(name), moved], range(len(self._packs)))
        except Exception as error:  # a model that takes no mask, no positions, or no block alone may raise anything
            logging.getLogger(__name__).info("variants of %s are read one by one: %s", name, first_line(error))
            return False
        wanted = [values(model, self._batches, self._metric)]
        with swapped(model, self._swaps.of(moved)):
            wanted.append(values(model, self._batches, self._metric))
        padded = [item.prompt.id for batch in self._batches for item in batch.encoded]
        packed = [item.prompt.id for pack in self._packs for item in pack.encoded]
        order = [packed.index(prompt) for prompt in padded]
        there = np.stack([found[variant][order] for variant in (Variant(name), moved)])
        return bool(np.allclose(there, wanted, rtol=NEAR, atol=NEAR * _largest(wanted), equal_nan=True))


def _largest(values: Sequence[Floats]) -> float:
    return max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
