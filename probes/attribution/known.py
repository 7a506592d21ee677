"""Values of the metric that are known already, so that no model reads a prompt twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.attribution.forwards import Floats, Variant

#: Arrays by name.
Arrays = Mapping[str, NDArray[Any]]


class Known:
    """Values by variant and prompt, in memory; `probes.attribution.kept.Kept` has them on disk too.

    `earlier` are the prompts, by id, of a finished run that others were added to. They are read in batches of their
    own, so that none is read again beside a new one.
    """

    def __init__(self, earlier: frozenset[str] = frozenset()) -> None:
        self.earlier = earlier
        self._values: dict[Variant, dict[str, float]] = {}

    def has(self, variant: Variant, prompts: Sequence[str]) -> bool:
        """Whether the values of all these prompts are there."""
        return self._values.get(variant, {}).keys() >= set(prompts)

    def of(self, variant: Variant, prompts: Sequence[str]) -> Floats:
        """The values of these prompts, (prompts,)."""
        return np.array([self._values[variant][prompt] for prompt in prompts], np.float64)

    def keep(self, prompts: Sequence[str], found: Mapping[Variant, Floats]) -> None:
        """Keep what was computed on the prompts of one batch: by variant, (prompts,)."""
        for variant, values in found.items():
            self._values.setdefault(variant, {}).update(zip(prompts, values.tolist(), strict=True))

    def arrays(self, label: str) -> Iterator[tuple[str, Arrays]]:
        """By prompt, what `keep_arrays` kept under a label; nothing is kept in memory."""
        return iter(())

    def keep_arrays(self, label: str, found: Mapping[str, Arrays]) -> None:
        """Keep what a method computed by prompt and is no value of the metric, for a resumed run."""
