"""Behaviour of a live model wherever it is put, point by point: a point that is finished is read, not run again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from tv.choosing.asked import Asked
from tv.experiments.cells import Cells
from tv.stats.means import Floats

#: By name of the set: a number per prompt, higher is better.
Values = Mapping[str, Floats]


class Trial:
    """Sets of prompts read of one model, with what is finished in `cells`."""

    def __init__(self, model: PreTrainedModel, sets: Mapping[str, Asked], cells: Cells, key: Mapping[str, Any]) -> None:
        self.model, self.sets, self._cells = model, sets, cells
        self._key = {**key, "sets": {name: [one.metric, _digest(one)] for name, one in sets.items()}}

    def at(self, place: object, put: Callable[[], AbstractContextManager[object]]) -> Values:
        """The values at a place, `place` being all that says where that is; within `put()` the model is there.

        Returns a number per prompt of every set, higher is better.
        """
        key = {**self._key, "at": place}
        found = self._cells.find(key)
        if found is None:
            with put():
                read = {name: one.sign * one.values(self.model) for name, one in self.sets.items()}
            parts = [pd.DataFrame({"set": name, "value": values}) for name, values in read.items()]
            found = self._cells.keep(key, pd.concat(parts, ignore_index=True))
        return {name: found.value[found["set"] == name].to_numpy() for name in self.sets}

    def kept(self, place: object, find: Callable[[], Floats]) -> Floats:
        """Numbers that `find` comes to, kept like the values of a point."""
        key = {**self._key, "found": place}
        found = self._cells.find(key)
        if found is None:
            found = self._cells.keep(key, pd.DataFrame({"value": np.asarray(find(), np.float64)}))
        return found.value.to_numpy()


def _digest(asked: Asked) -> str:
    text = repr([(p.id, p.text, p.target, p.foil, p.chat, p.cluster) for p in asked.prompts])
    ids = repr([item.ids for batch in asked.batch for item in batch.encoded])
    return hashlib.sha256((text + ids).encode()).hexdigest()[:24]
